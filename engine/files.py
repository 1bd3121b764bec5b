"""Files: written so that a reader never sees half of one, read so that no more is asked than they hold."""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from engine.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY, SCRATCH = ".writing-", "vlsm-scan-"
YOUNG_SECONDS = 60  # who made a folder may not have locked it yet
_looked_through: set[Path] = set()
LARGE_BYTES = 1 << 20  # of a single read
LONGEST_NAME_BYTES = 220  # most file systems take 255; the name of the temporary file beside is longer


def means_folder(output: str) -> bool:
    """Return whether an output is a folder: it is one already, ends with a separator, or has no suffix."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix


def check_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be written, or made, before any work is spent on it. None is made yet.

    Raises:
        UserError: a file is in the way, or it is not writable.
    """
    there = existing_part(folder)
    if not there.is_dir():
        raise UserError(f"{there} is no folder; nothing can be written to {folder}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the output folder {there} is not writable")


def make_folder(folder: Path) -> None:
    """Make an output folder, with those above it, where it is not there: once there is something to write.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be made: {error.strerror}") from error


def existing_part(folder: Path) -> Path:
    """Return the folder, or the first one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output path that cannot or must not be written, before any work is spent on it.

    Raises:
        UserError: its folder cannot be written or made, the name is too long, or the file exists and
            `overwrite` is false.
    """
    check_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if len(os.fsencode(path.name)) > LONGEST_NAME_BYTES:
        raise UserError(f"{path} has too long a name; give it at most {LONGEST_NAME_BYTES} bytes")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{path} exists already; add --overwrite to replace it")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffixes, to be written by the caller.

    On success the temporary file is flushed to disk and renamed over `path`; on any exception it is
    removed and `path` stays as it was. Until then nobody but the user can read it. What a process that was
    killed left in the folder is removed.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        _remove_left(path.parent)
        temporary, lock = _new_beside(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(path.stat().st_mode & 0o777 if path.is_file() else 0o666 & ~UMASK)
        _unlock(lock)  # Windows does not rename a file that is open
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _unlock(lock)
        with suppress(OSError):  # the folder may be gone, or read-only by now
            temporary.unlink(missing_ok=True)


@contextmanager
def private_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent` that nobody else can read; it is removed in the end.

    Raises:
        OSError: the disk is full or `parent` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        lock = [os.open(name, os.O_RDONLY)] if fcntl else []
        try:
            _try_lock(*lock)
            yield Path(name)
        finally:
            _unlock(lock)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder for parts of scans, in the system's folder of temporary files, that nobody else can read.

    It is removed in the end; what a process left that was killed is removed by the next one.

    Raises:
        OSError: the disk is full.
    """
    parent = Path(tempfile.gettempdir())
    if (parent / SCRATCH) not in _looked_through:
        for folder in left_folders(SCRATCH, parent):
            if time.time() - folder.stat().st_mtime > YOUNG_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        _looked_through.add(parent / SCRATCH)
    with private_folder(SCRATCH, parent) as folder:
        yield folder


def left_folders(prefix: str, parent: Path) -> list[Path]:
    """Return the folders of `private_folder` whose process was killed; none where that cannot be known."""
    folders = [path for path in parent.glob(f"{prefix}*") if path.is_dir() and not path.is_symlink()]
    return [path for path in folders if fcntl and _is_left(path)]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` in one step (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return what a file holds in JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_csv(path: Path, rows: Sequence) -> None:
    """Write instances of one dataclass as a table with a header, in one step (see `replacing`)."""
    write_table(path, [field.name for field in fields(rows[0])], [asdict(row) for row in rows])


def write_table(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Write a table with a header, also without any row, in one step (see `replacing`).

    What a row lacks stays empty; what it has beside the columns is left out.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Bounded(io.BufferedReader):
    """A file of which no more is asked than it has: Python takes memory for all that is asked, and a length that a
    damaged file declares may be any."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > LARGE_BYTES:
            size = max(0, min(size, self.size - self.tell()))
        return super().read(size)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _new_beside(path: Path) -> tuple[Path, list[int]]:
    """Return a new temporary file, and the descriptor that keeps others from removing it while this process lives:
    by a lock, or in Windows by being open."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=f"-{path.name}")
        _try_lock(descriptor)
        if not fcntl or os.fstat(descriptor).st_nlink:  # else another process took it for one that was left
            return Path(name), [descriptor]
        os.close(descriptor)


def _remove_left(folder: Path) -> None:
    """Remove the temporary files of processes that were killed, once for each folder."""
    if folder in _looked_through:
        return
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if not fcntl or _is_left(path):
                path.unlink()
    _looked_through.add(folder)


def _is_left(path: Path) -> bool:
    """Return whether no process holds the lock of a temporary file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(*descriptors: int) -> bool:
    try:
        for descriptor in descriptors if fcntl else ():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True


def _unlock(lock: list[int]) -> None:
    while lock:
        os.close(lock.pop())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # asked once, before there are threads: to ask is to change it for a moment
