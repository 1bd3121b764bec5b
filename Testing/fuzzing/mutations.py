"""Change bytes, lines of text and JSON as damage, carelessness and malice would."""

import copy
import json
import re
from typing import Any

import numpy as np

HEADER_BYTES = 512  # the start of a file, where most of what decides about the rest stands
NUMBERS = (0, 1, -1, 7, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**32, 10**12, 2**63 - 1, 10**40)
WORDS = ("", "nan", "inf", "-1e308", "1e400", "x" * 5000, "../../outside/x", "/dev/zero", "\0", "é", "None")
HUGE = "@huge@"  # becomes a number of more digits than Python takes
HOSTILE = (*NUMBERS, HUGE, *WORDS, 1e308, float("nan"), None, True, [], {}, [[]], "\ud800", ["a"] * 1000)
DEPTH = 100_000


def mutate_bytes(random: np.random.Generator, data: bytes) -> bytes:
    """Flip, cut, repeat, insert or overwrite, mostly near the start."""
    content = bytearray(data)
    for _ in range(random.integers(1, 5)):
        if content:
            _BYTES[random.integers(len(_BYTES))](random, content)
    return bytes(content)


def mutate_text(random: np.random.Generator, text: str) -> str:
    """Change numbers and lines of a header."""
    lines = text.split("\n")
    for _ in range(random.integers(1, 4)):
        index = int(random.integers(len(lines)))
        numbers = list(re.finditer(r"-?\d+(\.\d+)?", lines[index]))
        action = random.integers(6)
        if action < 3 and numbers:
            chosen = numbers[random.integers(len(numbers))]
            lines[index] = lines[index][: chosen.start()] + _number(random) + lines[index][chosen.end() :]
        elif action == 3:
            lines.insert(index, lines[random.integers(len(lines))])
        elif action == 4 and len(lines) > 1:
            del lines[index]
        else:
            key, separator, _ = lines[index].partition(": " if ": " in lines[index] else "= ")
            lines[index] = key + separator + _one_of(random, WORDS)
    return "\n".join(lines)


def mutate_json(random: np.random.Generator, value: Any) -> bytes:
    """Change a few entries of what JSON holds, or its text."""
    if random.random() < 0.03:
        return b"[" * DEPTH if random.random() < 0.5 else b'{"a":' * DEPTH
    changed = json.loads(json.dumps(value))
    for _ in range(random.integers(1, 4)):
        changed = _change(random, changed)
    text = json.dumps(changed, ensure_ascii=bool(random.random() < 0.5)).encode("utf-8", "surrogatepass")
    text = text.replace(json.dumps(HUGE).encode(), b"9" * 5000)
    return mutate_bytes(random, text) if random.random() < 0.25 else text


def _change(random: np.random.Generator, value: Any) -> Any:
    """Return a value with one entry, at whatever depth, replaced, removed or added."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or random.random() < 0.1:
        return copy.deepcopy(_one_of(random, HOSTILE))
    key = keys[random.integers(len(keys))]
    action = random.random()
    if action < 0.15:
        del value[key]
    elif action < 0.25 and isinstance(value, dict):
        value[_one_of(random, WORDS)] = value[key]
    elif action < 0.3 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _change(random, value[key])
    return value


def _number(random: np.random.Generator) -> str:
    return str(_one_of(random, NUMBERS)) if random.random() < 0.8 else _one_of(random, WORDS[1:5])


def _one_of(random: np.random.Generator, values: tuple) -> Any:
    return values[random.integers(len(values))]


def _place(random: np.random.Generator, content: bytearray) -> int:
    end = len(content) if random.random() < 0.4 else min(len(content), HEADER_BYTES)
    return int(random.integers(end))


def _flip(random: np.random.Generator, content: bytearray) -> None:
    content[_place(random, content)] ^= 1 << int(random.integers(8))


def _set(random: np.random.Generator, content: bytearray) -> None:
    content[_place(random, content)] = int(random.integers(256))


def _overwrite(random: np.random.Generator, content: bytearray) -> None:
    start, size = _place(random, content), int(2 ** random.integers(1, 4))
    number = int(_one_of(random, NUMBERS)) % 256**size
    content[start : start + size] = number.to_bytes(size, "little" if random.random() < 0.7 else "big")


def _cut(random: np.random.Generator, content: bytearray) -> None:
    del content[_place(random, content) if random.random() < 0.3 else int(random.integers(len(content))) :]


def _drop(random: np.random.Generator, content: bytearray) -> None:
    start = _place(random, content)
    del content[start : start + int(random.integers(1, 64))]


def _repeat(random: np.random.Generator, content: bytearray) -> None:
    start = _place(random, content)
    content[start:start] = content[start : start + int(random.integers(1, 64))]


def _insert(random: np.random.Generator, content: bytearray) -> None:
    start = _place(random, content)
    content[start:start] = random.bytes(int(random.integers(1, 32)))


_BYTES = (_flip, _flip, _set, _set, _overwrite, _overwrite, _cut, _drop, _repeat, _insert)
