"""What every data set is made of, whatever its layout."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.errors import UserError
from engine.imaging.volumes.volume import Volume

MOST_VALUES = 8  # in a message
MOST_PROMPTS = 50  # on a card
VALIDATION_SHARE = 0.1  # of the training volumes, where a folder names none for validation

Prompts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Annotation:
    """One structure in one image.

    Attributes:
        case: the picture or volume that the image is from.
        image: what `image()` of the data set takes; equal for all annotations of one image.
        target: what `mask()` of the data set takes.
        prompts: each entry holds equivalent wordings; the first entry is the plain class prompt.
        present: whether the mask has a voxel; None where it is not known before reading.
        label: what the structure is called in figures, where that is not the plain class prompt.
        variants: kind -> another wording, which is for measuring alone.
    """

    case: str
    image: Hashable
    target: Hashable
    prompts: Prompts
    present: bool | None = None
    label: str = ""
    variants: tuple[tuple[str, str], ...] = ()

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]

    @property
    def structure(self) -> str:
        return self.label or self.plain_prompt


@dataclass(frozen=True, eq=False)
class Truth:
    """What one prompt should give in a case.

    Attributes:
        prompts: as in `Annotation`.
        path: the file that holds the mask.
        read: gives the mask.
        known: (z, y, x) bool, where the labels say whether the structure is there; None for everywhere.
        label, variants: as in `Annotation`.
    """

    prompts: Prompts
    path: Path
    read: Callable[[], np.ndarray]
    known: np.ndarray | None = None
    label: str = ""
    variants: tuple[tuple[str, str], ...] = ()

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]

    @property
    def structure(self) -> str:
        return self.label or self.plain_prompt

    @cached_property
    def mask(self) -> np.ndarray:
        """(z, y, x) bool on the case's own grid.

        Raises:
            UserError: the file is missing, damaged or of another size.
        """
        return self.read()


@dataclass(frozen=True, eq=False)
class Case:
    """A picture or a whole volume, with all that is labelled in it.

    Attributes:
        truths: of the structures of which the labels say whether they are there.
        unlabelled: the plain class prompts of the data set's structures of which they say nothing.
        unnamed: label value -> how many voxels have it, though nothing names it.
    """

    name: str
    volume: Volume
    truths: list[Truth]
    unlabelled: tuple[str, ...] = ()
    unnamed: dict[int, int] = field(default_factory=dict)


class DataSet(ABC):
    """Labelled images of one split.

    Attributes:
        name: of the folder.
        paths: case -> the file of its picture or volume.
        patients: case -> patient, for the cases whose patient is known.
    """

    name: str
    paths: dict[str, Path]
    patients: dict[str, str]
    annotations: Sequence[Annotation]

    @abstractmethod
    def image(self, annotation: Annotation) -> np.ndarray:
        """Return the image as uint8, (height, width) grey or (height, width, 3) colours or neighbouring slices.

        Raises:
            UserError: the file is missing or damaged, or shows one single value.
        """

    @abstractmethod
    def mask(self, annotation: Annotation) -> np.ndarray:
        """Return the mask as bool, (height, width).

        Raises:
            UserError: the file is missing, damaged, no mask, or of another size than the image.
        """

    def known(self, annotation: Annotation) -> np.ndarray | None:
        """Return where the labels say whether the structure is there, bool (height, width); None for everywhere."""
        return None

    def unnamed(self) -> dict[str, dict[int, int]]:
        """Return case -> label value -> how many voxels have it though nothing names it, of the cases with such.

        Raises:
            UserError: see `case`.
        """
        return {}

    @abstractmethod
    def case(self, name: str) -> Case:
        """Read a picture or volume.

        Raises:
            UserError: the file is missing or damaged, or its labels do not fit.
        """

    def masks_above(self, grey: int) -> "DataSet":
        """Return the same images, whose masks begin above another grey value of their files; labels of volumes have
        none."""
        return self

    @property
    def case_count(self) -> int:
        return len(self.paths)

    def cases(self) -> Iterator[Case]:
        """Read the pictures or volumes one after another."""
        return map(self.case, self.paths)


def held_out(patients: Sequence[str]) -> set[str]:
    """Return the patients whose images are for validation, where nobody chose: every tenth, in the given order."""
    step = round(1 / VALIDATION_SHARE)
    return set(list(dict.fromkeys(patients))[step // 2 :: step])


def shows_anything(data_set: DataSet) -> bool:
    """Return whether any mask of a data set has a voxel.

    Raises:
        UserError: see `DataSet.mask`.
    """
    annotations = data_set.annotations
    return any(a.present for a in annotations) or any(
        data_set.mask(a).any() for a in annotations if a.present is None
    )


def check_labelled(data_set: DataSet, split: str = "train") -> None:
    """Raises:
    UserError: there is no mask with a voxel, from which a training could learn.
    """
    if not shows_anything(data_set):
        unnamed = unnamed_values(data_set.unnamed())
        told = f" (nothing names {unnamed})" if unnamed else ""
        raise UserError(
            f"{data_set.name} has nothing labelled in its split '{split}'; nothing can be trained{told}"
        )


def unnamed_values(unnamed: dict[str, dict[int, int]]) -> str:
    """Say in words which label values nothing names, of case -> value -> voxels; nothing where there are none."""
    voxels: Counter[int] = Counter()
    cases: Counter[int] = Counter()
    for values in unnamed.values():
        voxels.update(values)
        cases.update(values.keys())
    told = [f"{v} ({voxels[v]:,} voxels in {cases[v]} label maps)" for v in sorted(voxels)[:MOST_VALUES]]
    more = [f"… and {len(voxels) - MOST_VALUES} more"] if len(voxels) > MOST_VALUES else []
    return f"the label values {', '.join([*told, *more])}, such as in {next(iter(unnamed))}" if unnamed else ""


def wordings(data_set: DataSet) -> set[str]:
    """Return every prompt of a data set."""
    return {wording for a in data_set.annotations for words in a.prompts for wording in words}


def usual_prompts(data_set: DataSet) -> list[str]:
    """Return the plain class prompts in order; where each image has a description of its own, the most frequent."""
    counts = Counter(annotation.plain_prompt for annotation in data_set.annotations)
    return sorted(prompt for prompt, _ in counts.most_common(MOST_PROMPTS))
