"""Writing files so that a reader never sees half of one."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from engine.errors import UserError

LONGEST_NAME_BYTES = 220  # most file systems take 255; the name of the temporary file beside is longer


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output path that cannot or must not be written, before any work is spent on it.

    Raises:
        UserError: the folder is missing or not writable, the name is too long, or the file exists and
            `overwrite` is false.
    """
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"the output folder {folder} does not exist; create it first")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if len(os.fsencode(path.name)) > LONGEST_NAME_BYTES:
        raise UserError(f"{path} has too long a name; give it at most {LONGEST_NAME_BYTES} bytes")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise UserError(f"{path} exists already; add --overwrite to replace it")
    if not os.access(folder, os.W_OK):
        raise UserError(f"the output folder {folder} is not writable")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffixes, to be written by the caller.

    On success the temporary file is flushed to disk and renamed over `path`; on any exception it is
    removed and `path` stays as it was.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=f"-{path.name}")
        os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
