"""The files that describe a data set: JSON, and `prompts.yaml` with the wordings of its labels."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from engine import files
from engine.errors import UserError

PROMPTS_FILE = "prompts.yaml"
LONGEST_NAME_BYTES = 255


def read_json(path: Path) -> Any:
    """Raises:
    UserError: the file is missing or not valid.
    """
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def path_inside(folder: Path, name: object) -> Path:
    """Return the path of a file that a description names.

    Raises:
        ValueError: it is no name of a file in the folder or below it.
    """
    if not isinstance(name, str) or not name:
        raise ValueError("a name that is no text")
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name or not parts:
        raise ValueError(f"'{name}' is no file in its folder")
    if max(len(part.encode()) for part in parts) > LONGEST_NAME_BYTES:
        raise ValueError(f"'{name[:40]}…' is too long for a name")
    return folder / name


def read_wordings(folder: Path, labels: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the wordings of each label: those in `prompts.yaml`, where the folder has one, or its own name.

    The first wording is the plain class prompt.

    Raises:
        UserError: the file is not valid, names an unknown label, or gives two labels the same wording.
    """
    wordings = {label: (label,) for label in labels}
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return wordings
    try:
        chosen = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(chosen, dict):
        raise UserError(f"{path} holds no labels; write lines such as 'liver: [liver, the liver]'")
    unknown = [str(label) for label in chosen if label not in wordings]
    if unknown:
        raise UserError(f"{path} names unknown labels: {', '.join(unknown)}; there are {', '.join(wordings)}")
    wordings |= {label: _wordings(path, label, value) for label, value in chosen.items()}
    owners: dict[str, str] = {}
    for label, words in wordings.items():
        for wording in words:
            if owners.setdefault(wording, label) != label:
                raise UserError(f"{path} gives '{wording}' to both '{owners[wording]}' and '{label}'; part them")
    return wordings


def _wordings(path: Path, label: str, value: object) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not (isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)):
        raise UserError(f"{path} gives '{label}' no wording; write a text or a list of texts")
    return tuple(dict.fromkeys(words))
