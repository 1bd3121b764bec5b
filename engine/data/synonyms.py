"""The words that people have for what the data sets show: many to learn from, some held out to be asked by."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from engine.data.annotations import Prompts
from engine.errors import UserError

SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Wordings:
    """Wordings by structure.

    Attributes:
        trained: structure -> wordings, the plain prompts of the data sets among them.
        held_out: structure -> wordings that no training sees.
    """

    trained: dict[str, list[str]] = field(default_factory=dict)
    held_out: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Wordings":
        """Read a YAML file with lines such as `liver: {trained: [liver, livers], held_out: [hepatic tissue]}`.

        Raises:
            UserError: the file is not valid, or has a wording twice.
        """
        try:
            structures = yaml.safe_load(path.read_text(encoding="utf-8"))
            trained = {name: list(words["trained"]) for name, words in structures.items()}
            held_out = {name: list(words.get("held_out", [])) for name, words in structures.items()}
        except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no file of wordings ({' '.join(str(error).split())})") from error
        everything = [w.lower() for words in (*trained.values(), *held_out.values()) for w in words]
        if twice := sorted({word for word in everything if everything.count(word) > 1}):
            raise UserError(f"{path} has '{twice[0]}' twice; each wording means one thing")
        return cls(trained, held_out)

    def structure(self, plain_prompt: str) -> str:
        """Return the structure that a plain prompt of a data set means: itself, where the file does not know it."""
        return self._structures.get(plain_prompt.lower(), plain_prompt)

    def held_out_among(self, words: Iterable[str]) -> str | None:
        """Return one of some wordings that is held out; None where there is none."""
        held_out = {word.lower() for words in self.held_out.values() for word in words}
        return next((word for word in words if word.lower() in held_out), None)

    @cached_property
    def _structures(self) -> dict[str, str]:
        return {word.lower(): name for name, words in self.trained.items() for word in words}

    def all_trained(self) -> list[str]:
        return [word for words in self.trained.values() for word in words]

    def draw(self, prompts: Prompts, plain_rate: float, random: np.random.Generator) -> str:
        """Return a wording for what a data set calls `prompts`: its plain one, another of them, or the file's."""
        if random.random() < plain_rate:
            return prompts[0][0]
        groups = [*prompts]
        if known := self.trained.get(self.structure(prompts[0][0])):
            groups = [known] if random.random() < 0.5 else groups
        words = groups[random.integers(len(groups))]
        return words[random.integers(len(words))]


def exchange_sides(wording: str) -> str:
    """Return a wording for the mirrored picture, left and right exchanged."""
    return " ".join(SIDES.get(word, word) for word in wording.split(" "))


def misspell(wording: str, random: np.random.Generator) -> str:
    """Return a wording as people in a hurry type it: a letter left out, or two exchanged."""
    place = int(random.integers(1, max(2, len(wording) - 1)))
    if random.random() < 0.5:
        return wording[:place] + wording[place + 1 :]
    return wording[:place] + wording[place : place + 2][::-1] + wording[place + 2 :]
