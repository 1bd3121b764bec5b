"""What every data set is made of, whatever its layout."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.imaging.volumes.volume import Volume

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
    """

    case: str
    image: Hashable
    target: Hashable
    prompts: Prompts
    present: bool | None = None

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]


@dataclass(frozen=True, eq=False)
class Truth:
    """What one prompt should give in a case.

    Attributes:
        prompts: as in `Annotation`.
        path: the file that holds the mask.
        read: gives the mask.
    """

    prompts: Prompts
    path: Path
    read: Callable[[], np.ndarray]

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]

    @cached_property
    def mask(self) -> np.ndarray:
        """(z, y, x) bool on the case's own grid.

        Raises:
            UserError: the file is missing, damaged or of another size.
        """
        return self.read()


@dataclass(frozen=True, eq=False)
class Case:
    """A picture or a whole volume, with all that is labelled in it."""

    name: str
    volume: Volume
    truths: list[Truth]


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


def wordings(data_set: DataSet) -> set[str]:
    """Return every prompt of a data set."""
    return {wording for a in data_set.annotations for words in a.prompts for wording in words}
