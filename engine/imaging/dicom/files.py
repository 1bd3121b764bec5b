"""DICOM files as data sets, read with no more trust in them than they earn."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from engine.errors import UserError
from engine.files import Bounded
from engine.imaging.dicom.quiet import quietly

LARGEST_DEFLATED_BYTES = 1 << 30
UNREADABLE = (  # what pydicom and the decoders raise for damaged files
    AttributeError,
    BytesLengthException,
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@quietly()
def read_header(path: Path, tags: Sequence[str | int] | None = None, force: bool = False) -> pydicom.Dataset:
    """Return what stands before the pixels, all of it decoded.

    Args:
        tags: the keywords or numbers that matter; all when None.
        force: read a file without DICOM's mark, too.

    Raises:
        one of `UNREADABLE`: the file is damaged.
        UserError: it unpacks without end.
    """
    check_deflated(path)
    with Bounded(path) as file:
        names = None if tags is None else list(tags)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=names, force=force)
    for _ in header.iterall():
        pass  # decoded here, where damage is expected
    return header


@quietly()
def read_whole(path: Path) -> pydicom.Dataset:
    """Return all of a file, with or without DICOM's mark (see `read_header`)."""
    check_deflated(path)
    with Bounded(path) as file:
        return pydicom.dcmread(file, force=True)


def check_deflated(path: Path) -> None:
    """Refuse a deflated file (PS3.5 A.5) that would unpack without end, since it is unpacked as a whole."""
    with Bounded(path) as file:
        try:
            read_preamble(file, force=False)
        except InvalidDicomError:
            return  # a file without a preamble is not deflated
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := file.read(1 << 20):
            while block and not unpacker.eof:
                size += len(unpacker.decompress(block, 1 << 24))
                block = unpacker.unconsumed_tail
            if size > LARGEST_DEFLATED_BYTES:
                raise UserError(f"{path} unpacks to more than {LARGEST_DEFLATED_BYTES:,} bytes; it is refused")
