"""What a ZIP file must not hold, before anything of it is unpacked."""

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from engine.errors import UserError

# what zipfile raises for damaged files
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, RuntimeError)


def safe_entries(archive: zipfile.ZipFile, source: Path) -> list[zipfile.ZipInfo]:
    """Return the entries of a ZIP file, once all of them are safe to unpack.

    Raises:
        UserError: one is not.
    """
    entries = archive.infolist()
    for entry in entries:
        if problem := _problem_of(entry):
            raise UserError(f"{source} holds '{entry.filename}', which {problem}; it is refused")
    return entries


def _problem_of(entry: zipfile.ZipInfo) -> str:
    """Return why an entry of a ZIP file is not safe to unpack; nothing where it is."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith("/") or "\\" in name or ":" in name or "\0" in name:
        return "has an absolute path, or signs that no path needs"
    if ".." in PurePosixPath(name).parts:
        return "leads out of its folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or no plain file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others take memory as they like
        return "is packed in an unusual way"
    return "is encrypted" if entry.flag_bits & 1 else ""
