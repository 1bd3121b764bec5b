"""DICOM series in a ZIP file, which is checked before anything is unpacked."""

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.archives import DAMAGE, safe_entries
from engine.errors import UserError
from engine.files import scratch_folder

MOST_ENTRIES = 200_000
LARGEST_BYTES = 64 << 30  # of all files once unpacked
MOST_UNPACKED = 1100  # times the bytes of the ZIP file; deflate reaches 1032


def is_archive(path: Path) -> bool:
    """Return whether a file is named as a ZIP file and is one."""
    return path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a folder with the files of a ZIP file, which is removed afterwards.

    Raises:
        UserError: an entry leads out of the folder, is a link, encrypted or damaged; there are too many, or they
            take more space than there is.
    """
    with scratch_folder() as folder:
        try:
            _unpack(path, folder)
        except (*DAMAGE, OSError) as error:
            raise UserError(f"{path} cannot be unpacked, or is damaged ({error}); get it again") from error
        yield folder


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in _checked(archive, path, folder):
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as reader, target.open("xb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)


def _checked(archive: zipfile.ZipFile, path: Path, folder: Path) -> list[zipfile.ZipInfo]:
    """Return the files of a ZIP file, all of them safe, and not more than the disk can hold."""
    count = len(archive.infolist())
    if count > MOST_ENTRIES:
        raise UserError(f"{path} holds {count:,} entries, more than {MOST_ENTRIES:,}; it is refused")
    entries = safe_entries(archive, path)
    size, there = sum(entry.file_size for entry in entries), path.stat().st_size
    if size > LARGEST_BYTES or size > MOST_UNPACKED * there:
        raise UserError(f"{path} says that its {there:,} bytes unpack to {size:,}; it is refused")
    if size > shutil.disk_usage(folder).free:
        raise UserError(f"{path} unpacks to {size:,} bytes, and {folder.parent} has less space; set TMPDIR")
    return [entry for entry in entries if not entry.is_dir()]
