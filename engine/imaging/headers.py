"""Headers that are lines of text (NRRD, MetaImage), read with no trust in them.

Libraries trust such headers: a line that is too long or a number that is too large ends the process, and memory is
taken for any size that is promised.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from engine.errors import UserError

LONGEST_HEADER = 10 << 20  # bytes
LONGEST_LINE, LONGEST_WORD, MOST_WORDS = 1000, 200, 64
DIMENSIONS = range(2, 5)
LARGEST = 1e18  # of the numbers of a geometry; SimpleITK computes for ever with infinite ones
PATTERN = re.compile(r"([^%]*%0?\d?[diu][^%]*?)\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})(\s+\d)?")
MOST_FILES = 100_000


def split_header(path: Path, end: re.Pattern) -> tuple[bytes, int]:
    """Return the header with its end, and where the voxels begin; all of a file that is header alone.

    Raises:
        UserError: it cannot be read, or its header has no end.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_HEADER)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    match = end.search(content)
    if match is None and len(content) == LONGEST_HEADER:
        raise UserError(f"{path} has no end of its header; it may be damaged or not what its name says")
    place = match.end() if match else len(content)
    return content[:place], place


def check_lines(path: Path, lines: Sequence[str]) -> None:
    """Refuse a header with a line that is too long."""
    longest = max(lines, key=len, default="")
    if len(longest) > LONGEST_LINE:
        raise UserError(f"{path} has a line in its header that is too long ({longest[:40]} …); mend it")


def check_values(path: Path, fields: dict[str, str]) -> None:
    """Refuse a header with a word that is too long, or too many of them."""
    for name, value in fields.items():
        words = value.split()
        longest = max(map(len, words), default=0)
        if name == "content":  # words for people
            continue
        if len(words) > MOST_WORDS or (longest > LONGEST_WORD and "file" not in name.lower()):
            raise UserError(f"{path} has a word in its header that is too long ({name[:40]}); mend it")


def check_numbers(path: Path, name: str, words: Sequence[str]) -> None:
    """Refuse what is no number, or too large a one."""
    for word in words:
        try:
            valid = abs(float(word)) < LARGEST
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"{path} has '{word[:40]}' among the numbers of its {name}; mend its header")


def whole_numbers(path: Path, name: str, text: str, count: int, lowest: int = 1) -> list[int]:
    """Return the whole numbers of a field.

    Raises:
        UserError: they are none, not so many, or below the lowest.
    """
    words = text.split()
    valid = len(words) == count and all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words)
    if not valid or min(map(int, words)) < lowest:
        least = "above zero" if lowest == 1 else f"from {lowest} on"
        raise UserError(f"{path} has '{text[:60]}' for its {name}; it must be {count} whole numbers {least}")
    return [int(word) for word in words]


def file_names(path: Path, pattern: str) -> list[str]:
    """Return the names that a pattern stands for: "s%03d.raw 0 8 1" is s000.raw, s001.raw … s008.raw.

    Raises:
        UserError: it is no pattern, or stands for none or too many.
    """
    match = PATTERN.fullmatch(pattern)
    if not match:
        raise UserError(f"{path} names the files of its voxels by '{pattern[:60]}', which is no pattern; mend it")
    first, last, step = map(int, match.groups()[1:4])
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else ()
    if not 0 < len(numbers) <= MOST_FILES:
        raise UserError(f"{path} names {len(numbers)} files for its voxels by '{pattern[:60]}'; mend it")
    return [match[1] % number for number in numbers]


def no_header(path: Path, kind: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({kind} starts otherwise); it may be damaged or not what its name says"
    )
