"""Volumes from files of the server's machine, in the folders that are allowed."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from engine.errors import UserError
from engine.imaging.dicom.archive import is_archive
from engine.imaging.dicom.series import is_dicom
from engine.imaging.reading import image_suffix, names_other_files, read_volume, unpacked_bytes
from engine.imaging.volumes.volume import Volume
from engine.server.refusal import Refusal

FORBIDDEN = "the server may not read files there; send the voxels, or use --allow-path"


def read_allowed(path: str, series: str | None, frame: int | None, allowed: tuple[Path, ...], limit: int) -> Volume:
    """Read a volume.

    Args:
        allowed: the folders, resolved, in which files may be read.
        limit: bytes of the files, and of their voxels once they are unpacked.

    Raises:
        Refusal: the path leads elsewhere, also by a link, whether it exists or not; the files are too large.
        UserError: the file cannot be read.
    """
    meant = _resolved(path)
    if not _is_inside(meant, allowed):
        raise Refusal(403, FORBIDDEN)
    files = [meant, *(meant.rglob("*") if meant.is_dir() else [])]
    if not all(_is_inside(_resolved(file), allowed) for file in files):
        raise Refusal(403, FORBIDDEN)
    if meant.exists() and not (meant.is_file() or meant.is_dir()):
        raise Refusal(403, "the server reads files and folders, and nothing else")
    if is_archive(meant):
        raise Refusal(403, "the server unpacks no ZIP files; name a folder with the files themselves")
    if any(file.is_file() and names_other_files(file) for file in files):
        raise Refusal(403, "the server reads no headers that name the files of their voxels; save it as one file")
    if sum(file.stat().st_size for file in files if file.is_file()) > limit:
        raise Refusal(413, f"the files are larger than the {limit:,} bytes that the server takes")
    if _unpacked_bytes(files) > limit:
        raise Refusal(413, f"the voxels would take more than the {limit:,} bytes that the server takes; crop them")
    return read_volume(meant, series, frame)


def _unpacked_bytes(files: Iterable[Path]) -> int:
    """Return what the voxels of images will take, by their headers; reading says what is wrong with a header."""
    total = 0
    for file in files:
        if file.is_file() and (image_suffix(file) or is_dicom(file)):
            with suppress(UserError):
                total += unpacked_bytes(file)
    return total


def _is_inside(place: Path | None, allowed: tuple[Path, ...]) -> bool:
    return place is not None and any(place.is_relative_to(folder) for folder in allowed)


def _resolved(path: str | Path | None) -> Path | None:
    """Return where a path leads; None where it leads nowhere, with a NUL in it or by links in a circle."""
    try:
        return Path(path).resolve()
    except (OSError, ValueError, RuntimeError, TypeError):
        return None
