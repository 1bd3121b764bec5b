"""Pictures with masks, and the MedVLSM layout of them: `images/`, `masks/` and `anns/{split}.json`."""

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np

from engine.choices import HALF
from engine.data.annotations import Annotation, Case, DataSet, Truth
from engine.data.descriptions import path_inside, read_json
from engine.data.masks import binary, read_grey, read_single
from engine.errors import UserError
from engine.imaging.volumes.intensity import intensity_range, to_unit
from engine.imaging.volumes.volume import Volume


def is_layout(folder: Path) -> bool:
    return (folder / "anns").is_dir()


def open_pictures(folder: Path, split: str, left_out: frozenset[Path] = frozenset()) -> "PictureSet":
    """Open a split in the layout of MedVLSM. A row may name its "patient", who then must not be in two splits.

    Where `images` and `masks` are parted into `train` and `test`, as those of CAMUS are, names may recur in both.

    Raises:
        UserError: the file of the split is missing or not valid.
    """
    images, masks = (_part(folder / name, split) for name in ("images", "masks"))
    path = folder / "anns" / f"{split}.json"
    try:
        rows = [row for row in read_json(path) if path_inside(images, row["img_name"]) not in left_out]
        annotations = list(map(_annotation, rows))
        patients = {row["img_name"]: str(row["patient"]) for row in rows if "patient" in row}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} has a row without a name, a mask or a prompt ({error}); mend it") from error
    return PictureSet(folder.name, images, masks, annotations, patients)


class PictureSet(DataSet):
    """The pictures of one split.

    Args:
        images, masks: the folders of the files that annotations name as their `case` and their `target`.
    """

    def __init__(
        self, name: str, images: Path, masks: Path, annotations: Sequence[Annotation], patients: dict[str, str]
    ):
        self.name, self._masks, self.patients = name, masks, patients
        self._mask_above = HALF
        self._sizes: dict[str, tuple[int, int]] = {}
        self.annotations = sorted(annotations, key=lambda annotation: annotation.case)
        self._by_case: dict[str, list[Annotation]] = defaultdict(list)
        for annotation in self.annotations:
            self._by_case[annotation.case].append(annotation)
        self.paths = {name: images / name for name in self._by_case}

    def masks_above(self, grey: int) -> "PictureSet":
        other = copy(self)
        other._mask_above = grey
        return other

    def image(self, annotation: Annotation) -> np.ndarray:
        volume = self._volume(annotation.case)
        return np.round(to_unit(volume.voxels[0], *intensity_range(volume)) * 255).astype(np.uint8)

    def mask(self, annotation: Annotation) -> np.ndarray:
        path = self._mask_path(annotation)
        grey = read_grey(path)
        if annotation.case not in self._sizes:
            self._volume(annotation.case)
        expected = self._sizes[annotation.case]
        if grey.shape != expected:
            turned = ", as EXIF turns it" if grey.shape == expected[::-1] else ""
            raise UserError(
                f"{path} has {_size(grey.shape)} pixels and its image {annotation.case} {_size(expected)}{turned}; "
                "they must be equal"
            )
        return binary(grey, path, self._mask_above)

    def case(self, name: str) -> Case:
        volume = self._volume(name)
        return Case(name, volume, [self._truth(annotation) for annotation in self._by_case[name]])

    def _truth(self, annotation: Annotation) -> Truth:
        read = partial(self._whole_mask, annotation)
        named = {"label": annotation.label, "variants": annotation.variants}
        return Truth(annotation.prompts, self._mask_path(annotation), read, **named)

    def _whole_mask(self, annotation: Annotation) -> np.ndarray:
        return self.mask(annotation)[None]

    def _mask_path(self, annotation: Annotation) -> Path:
        return self._masks / str(annotation.target)

    def _volume(self, case: str) -> Volume:
        volume = read_single(self.paths[case])
        self._sizes[case] = volume.shape[1:]
        return volume


def _part(folder: Path, split: str) -> Path:
    """Return where the files of a split are: validation is a part of what was for training."""
    part = folder / ("test" if split == "test" else "train")
    return part if part.is_dir() else folder


def _annotation(row: dict) -> Annotation:
    wordings = [value for key, value in sorted(row["prompts"].items()) if key != "p0"]
    prompts = tuple((words,) if isinstance(words, str) else tuple(words) for words in wordings)
    prompts = tuple(words for words in prompts if words)
    if not prompts or not all(isinstance(word, str) for words in prompts for word in words):
        raise KeyError("prompts")
    path_inside(Path(), row["mask_name"])
    return Annotation(row["img_name"], row["img_name"], row["mask_name"], prompts)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape[::-1]))
