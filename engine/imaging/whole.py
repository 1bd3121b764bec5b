"""Proof that all voxels of a file are there, for files that SimpleITK fills up where they are cut off."""

import gzip
import math
import re
import zlib
from pathlib import Path

from PIL import Image

from engine.errors import UserError
from engine.files import Bounded
from engine.imaging.dicom.quiet import quietly
from engine.imaging.headers import MOST_PACKED

MOST_EXCESS = 2  # how often a compressed file may hold what its header says, or a mebibyte
MOST_PIXELS_A_BYTE = 9000  # 8320 is what deflate can make of one byte at 1 bit each
SMALL_PICTURE = 16 << 20  # pixels


def unpacked_size(path: Path, needed: int) -> int:
    """Return the size of a file once unpacked; gzip's own checksum is proved on the way.

    Args:
        needed: what it should have by its header.

    Raises:
        OSError, EOFError, zlib.error: it is damaged.
        UserError: it goes on far beyond that.
    """
    if path.suffix.lower() != ".gz":
        return path.stat().st_size
    size, packed = 0, path.stat().st_size
    if packed * MOST_PACKED < needed:
        return packed
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            size += len(block)
            _check_excess(path, size, needed)
    return size


def check_compressed(path: Path, needed: int) -> None:
    """Refuse an attached NRRD or a MetaImage whose compressed voxels are damaged or cut off.

    Args:
        needed: how many bytes they should have by the header.

    Raises:
        UserError: they are.
    """
    content = path.read_bytes()
    nrrd = path.name.lower().endswith(".nrrd")
    if nrrd and re.search(rb"^encoding: *gz", content[:100_000], re.MULTILINE | re.IGNORECASE):
        start, kind = content.find(b"\n\n") + 2, 31
    elif not nrrd and re.search(rb"^CompressedData *= *True", content[:100_000], re.MULTILINE | re.IGNORECASE):
        match = re.search(rb"^ElementDataFile *= *LOCAL\r?\n", content, re.MULTILINE)
        start, kind = match.end() if match else -1, 47
    else:
        return
    unpacker, size = zlib.decompressobj(kind), 0
    try:
        rest = content[start:] if start > 1 else b""
        while rest:
            size += len(unpacker.decompress(rest, 1 << 24))
            _check_excess(path, size, needed)
            rest = unpacker.unconsumed_tail
    except zlib.error as error:
        raise UserError(f"{path} has damaged voxels ({error}); get it again") from error
    if start > 1 and not unpacker.eof:
        raise UserError(f"{path} ends before its last voxel; it is damaged, get it again")


def check_picture(path: Path) -> None:
    """Refuse a picture whose end is missing, which SimpleITK would fill up, or that promises more than it holds."""
    most = MOST_PIXELS_A_BYTE * path.stat().st_size + SMALL_PICTURE
    try:
        with quietly(), Bounded(path) as file, Image.open(file) as picture:
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


def _check_excess(path: Path, size: int, needed: int) -> None:
    """Refuse a small file that would be unpacked for hours."""
    if size > MOST_EXCESS * max(needed, 1 << 20):
        raise UserError(f"{path} unpacks to far more than its header says; it is damaged, get it again")
