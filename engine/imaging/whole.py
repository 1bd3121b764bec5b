"""Proof that all voxels of a file are there: libraries fill up what is cut off, or leave what memory held."""

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from engine.errors import UserError
from engine.files import Bounded

MOST_PACKED = 1040  # bytes that deflate can make of one
MOST_EXCESS = 2  # how often a compressed file may hold what its header says, or a mebibyte
BLOCK_BYTES = 1 << 20
GZIP_MARK = b"\x1f\x8b"
GZIP, GZIP_OR_ZLIB = 31, 47  # as zlib names them
MOST_PIXELS_A_BYTE = 9000  # 8320 is what deflate can make of one byte at 1 bit each
SMALL_PICTURE = 16 << 20  # pixels
# Of TIFF and BigTIFF: where the first page's place stands, the form of a count, an entry's bytes, a place's form.
TIFFS = {42: (4, "H", 12, "I"), 43: (8, "Q", 20, "Q")}


class Content:
    """The bytes of a file from a place on, unpacked where they are packed, one after another.

    Args:
        start: where they begin in the file; what is packed begins there.
        packed: whether they are (gzip, or zlib with its header); as their first bytes tell when None.

    Attributes:
        held: how many bytes the file has from `start` on, as they lie there.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path, start: int = 0, packed: bool | None = None):
        self._path, self._start = path, start
        try:
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is no file; it cannot hold voxels")
            with path.open("rb") as file:
                file.seek(start)
                mark = file.read(len(GZIP_MARK))
            self.held = max(0, path.stat().st_size - start)
        except (OSError, ValueError) as error:
            raise UserError(f"{str(path)!a} cannot be read ({getattr(error, 'strerror', error)})") from error
        self.packed = mark == GZIP_MARK if packed is None else packed
        self._blocks = _unpacked(path, start, GZIP if mark == GZIP_MARK else GZIP_OR_ZLIB) if self.packed else None
        self._rest, self._taken = b"", 0

    def read(self, count: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        return self._take(count).tobytes()

    def voxels(self, skip: int, dtype: np.dtype, count: int) -> np.ndarray:
        """Return numbers (count,) that begin after `skip` further bytes, and see that what is packed ends well.

        Raises:
            UserError: the file ends before the last one, is damaged, or goes on far beyond.
        """
        needed = count * dtype.itemsize
        self.check_holds(skip + needed)
        if self._blocks is None:
            return np.fromfile(self._path, dtype, count, offset=self._start + self._taken + skip)
        self._take(skip)
        taken = self._take(needed)
        if len(taken) < needed:
            raise cut_off(self._path)
        self._finish(self._taken)
        return taken.view(dtype)

    def prove(self, further: int) -> None:
        """See that there are so many further bytes, and that what is packed ends well; raises as `voxels` does."""
        self.check_holds(further)
        if self._blocks is not None:
            self._finish(self._taken + further)

    def check_holds(self, further: int) -> None:
        """Refuse a file that cannot hold so many further bytes, before memory is taken for them.

        Raises:
            UserError: it cannot.
        """
        held = self.held * MOST_PACKED if self.packed else self.held - self._taken
        if held < further:
            raise cut_off(self._path)

    def _take(self, count: int) -> np.ndarray:
        taken, filled = np.empty(count, np.uint8), 0
        while filled < count:
            self._rest = self._rest or self._next()
            if not self._rest:
                break
            part = self._rest[: count - filled]
            taken[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            self._rest = self._rest[len(part) :]
            filled += len(part)
        self._taken += filled
        return taken[:filled]

    def _next(self) -> bytes:
        if self._blocks is None:
            with self._path.open("rb") as file:
                file.seek(self._start + self._taken)
                return file.read(BLOCK_BYTES)
        try:
            return next(self._blocks, b"")
        except EOFError:
            raise cut_off(self._path) from None
        except zlib.error as error:
            raise UserError(f"{self._path} has damaged voxels ({error}); get it again") from error

    def _finish(self, needed: int) -> None:
        """Unpack the rest, at whose end is the checksum; refuse a small file that would unpack for hours."""
        size = self._taken + len(self._rest)
        while block := self._next():
            size += len(block)
            if size > MOST_EXCESS * max(needed, BLOCK_BYTES):
                raise UserError(
                    f"{self._path} unpacks to far more than its header says; it is damaged, get it again"
                )
        if size < needed:
            raise cut_off(self._path)


def cut_off(path: Path) -> UserError:
    return UserError(f"{path} ends before its last voxel; it is damaged, get it again")


def check_picture(path: Path) -> None:
    """Refuse a picture whose end is missing, which SimpleITK would fill up, or that promises more than it holds."""
    _check_pages(path)
    most = MOST_PIXELS_A_BYTE * path.stat().st_size + SMALL_PICTURE
    try:
        with opened_picture(path) as picture:
            for page in range(getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1):
                picture.seek(page)
                if math.prod(picture.size) * len(picture.getbands()) > most:
                    raise UserError(
                        f"{path} promises {' × '.join(map(str, picture.size))} pixels, which it cannot hold"
                    )
                picture.load()
    except Image.UnidentifiedImageError:
        return  # a kind that Pillow does not know; SimpleITK may
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has too many pixels for a picture; cut out what matters") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again") from error


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """Yield a picture of which nothing is decoded yet.

    Raises:
        OSError, SyntaxError, ValueError, EOFError: it is damaged, or of a kind that Pillow does not know.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is an error here
        with Bounded(path) as file, Image.open(file) as picture:
            yield picture


def _check_pages(path: Path) -> None:
    """Refuse a TIFF whose pages, each of which names the next one's place, do not come to their end: libraries read
    those that are there."""
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        kind = TIFFS.get(int.from_bytes(head[2:4], "little" if order == "<" else "big"))
        if order is None or kind is None:
            return
        place, count, entry_bytes, following = kind

        def number(form: str) -> int:
            return struct.unpack(order + form, file.read(struct.calcsize(form)))[0]

        try:
            file.seek(place)
            page, seen = number(following), set()
            while page and page not in seen:
                seen.add(page)
                file.seek(page)
                file.seek(page + struct.calcsize(count) + number(count) * entry_bytes)
                page = number(following)
        except (struct.error, OSError, OverflowError):
            raise UserError(f"{path} ends before its last page; it is damaged, get it again") from None


def _unpacked(path: Path, start: int, kind: int) -> Iterator[bytes]:
    """Yield what a file unpacks to: all parts that follow each other; other bytes after the last one do not count.

    Raises:
        zlib.error: it is damaged; checksums are compared.
        EOFError: it is cut off.
    """
    with path.open("rb") as file:
        file.seek(start)
        rest = file.read(BLOCK_BYTES)
        while True:
            unpacker = zlib.decompressobj(kind)
            while not unpacker.eof:
                block = unpacker.decompress(rest, BLOCK_BYTES)
                if block:
                    yield block
                elif not rest:
                    raise EOFError
                if not unpacker.eof:
                    rest = unpacker.unconsumed_tail or file.read(BLOCK_BYTES)
            rest = unpacker.unused_data
            rest += file.read(BLOCK_BYTES) if len(rest) < len(GZIP_MARK) else b""
            if not rest.startswith(GZIP_MARK):
                return
