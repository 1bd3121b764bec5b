"""Labelled images for training: pictures in the MedVLSM layout and volumes in the Decathlon layout.

Both are seen as one list of annotations: an image, the prompts that describe one structure in it, and the
mask of that structure. Splits go by case (picture or volume), never by slice.
"""

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.errors import UserError
from engine.files import sha256_of
from engine.imaging.intensity import intensity_range, to_unit
from engine.imaging.planes import orient
from engine.imaging.reading import read_volume
from engine.imaging.volume import Volume

SPLITS = ("train", "val", "test")
VALIDATION_SHARE = 0.1  # of the training volumes, where a Decathlon folder names no validation set


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
    prompts: tuple[tuple[str, ...], ...]
    present: bool | None = None

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]


@dataclass(frozen=True, eq=False)
class Truth:
    """What one prompt should give in a case: `mask` is (z, y, x) bool on the case's own grid."""

    prompts: tuple[tuple[str, ...], ...]
    mask: np.ndarray

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]


@dataclass(frozen=True, eq=False)
class Case:
    """A picture or a whole volume, with all that is labelled in it."""

    name: str
    volume: Volume
    truths: list[Truth]


class DataSet(Protocol):
    """What training and evaluation need of labelled images."""

    name: str
    annotations: list[Annotation]
    case_count: int
    image_paths: list[Path]

    def cases(self) -> Iterator[Case]:
        """Read the pictures or volumes one after another, each with its reference masks."""

    def image(self, annotation: Annotation) -> np.ndarray:
        """Return the image as uint8, (height, width) grey or (height, width, 3) RGB."""

    def mask(self, annotation: Annotation) -> np.ndarray:
        """Return the mask as bool, (height, width)."""


def open_data_set(
    folder: Path, split: str, planes: tuple[str, ...] = ("axial",), left_out: frozenset[Path] = frozenset()
) -> DataSet:
    """Open a folder in either layout.

    Args:
        folder: holds `anns/{train,val,test}.json` (MedVLSM) or `dataset.json` (Decathlon, nnU-Net).
        split: train, val or test.
        planes: the planes in which volumes are sliced; pictures ignore it.
        left_out: images that are not wanted, by their paths.

    Raises:
        UserError: the folder is in neither layout, or a file that it names is missing or not valid.
    """
    if (folder / "anns").is_dir():
        return PictureSet(folder, split, left_out)
    if (folder / "dataset.json").is_file():
        return VolumeSet(folder, split, planes, left_out)
    raise UserError(f"{folder} holds neither anns/train.json (pictures) nor dataset.json (volumes)")


def open_splits(folder: Path, planes: tuple[str, ...], drop_overlap: bool = False) -> dict[str, DataSet]:
    """Open all splits of a folder, which must not share an image (by the bytes of the files).

    Args:
        drop_overlap: leave an image that two splits share out of the later one (of train, val, test).

    Raises:
        UserError: two splits share an image and `drop_overlap` is false; see also `open_data_set`.
    """
    sets: dict[str, DataSet] = {}
    seen: dict[str, tuple[str, Path]] = {}
    for split in SPLITS:
        data_set = open_data_set(folder, split, planes)
        shared = {}
        for path in data_set.image_paths:
            first = seen.setdefault(_hash(path), (split, path))
            if first[0] != split:
                shared[path] = first
        if shared and not drop_overlap:
            path, (other, twin) = next(iter(shared.items()))
            raise UserError(
                f"{folder}: the split '{split}' shares {len(shared)} image(s) with others, such as {path.name} "
                f"with {twin.name} in '{other}', which flatters the figures; add --drop-overlap to leave them out"
            )
        sets[split] = open_data_set(folder, split, planes, frozenset(shared)) if shared else data_set
    return sets


def wordings(data_set: DataSet) -> set[str]:
    """Return every prompt of a data set."""
    return {wording for a in data_set.annotations for words in a.prompts for wording in words}


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}), though a split names it") from error


class PictureSet:
    """Pictures with masks: `images/`, `masks/` and `anns/{split}.json` (the MedVLSM layout)."""

    def __init__(self, folder: Path, split: str, left_out: frozenset[Path]):
        self.name = folder.name
        self._folder = folder
        path = folder / "anns" / f"{split}.json"
        try:
            rows = [row for row in _read_json(path) if folder / "images" / row["img_name"] not in left_out]
            self.annotations = sorted(map(self._annotation, rows), key=lambda annotation: annotation.case)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} has a row without a name, a mask or a prompt ({error}); mend it") from error

    def image(self, annotation: Annotation) -> np.ndarray:
        return read_volume(self._folder / "images" / str(annotation.image)).voxels[0]

    def mask(self, annotation: Annotation) -> np.ndarray:
        mask = read_volume(self._folder / "masks" / str(annotation.target)).voxels[0]
        mask = mask[..., 0] if mask.ndim == 3 else mask
        return mask > (127 if mask.max() > 1 else 0)  # JPEG masks hold grey values near the edge

    @property
    def case_count(self) -> int:
        return len({annotation.case for annotation in self.annotations})

    @property
    def image_paths(self) -> list[Path]:
        names = dict.fromkeys(annotation.case for annotation in self.annotations)
        return [self._folder / "images" / name for name in names]

    def cases(self) -> Iterator[Case]:
        for name, group in groupby(self.annotations, key=lambda annotation: annotation.case):
            truths = [Truth(annotation.prompts, self.mask(annotation)[None]) for annotation in group]
            yield Case(name, read_volume(self._folder / "images" / name), truths)

    def _annotation(self, row: dict) -> Annotation:
        wordings = [value for key, value in sorted(row["prompts"].items()) if key != "p0"]
        prompts = tuple((words,) if isinstance(words, str) else tuple(words) for words in wordings)
        prompts = tuple(words for words in prompts if words)
        if not prompts:
            raise KeyError("prompts")
        return Annotation(row["img_name"], row["img_name"], row["mask_name"], prompts)


class VolumeSet:
    """Volumes with label maps, slice by slice: `imagesTr/`, `labelsTr/` and `dataset.json`.

    The labels are the Decathlon's (value: name) or nnU-Net's (name: value, or name: values of a region);
    their names are the prompts. Slices of one value are left out.
    """

    def __init__(self, folder: Path, split: str, planes: tuple[str, ...], left_out: frozenset[Path]):
        self.name = folder.name
        description = _read_json(folder / "dataset.json")
        try:
            self._labels = _label_values(description["labels"])
            pairs = _pairs_of_split(folder, description, split)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / 'dataset.json'} lacks labels or volumes ({error}); mend it") from error
        self._pairs = [pair for pair in pairs if pair[0] not in left_out]
        self.annotations = [
            annotation
            for index in range(len(self._pairs))
            for plane in planes
            for annotation in self._annotations(index, plane)
        ]

    def image(self, annotation: Annotation) -> np.ndarray:
        index, plane, position = annotation.image
        stack, (low, high) = self._stack(index, plane)
        return np.round(to_unit(stack[position], low, high) * 255).astype(np.uint8)

    def mask(self, annotation: Annotation) -> np.ndarray:
        index, plane, position = annotation.image
        labels = orient(self._label_map(index).voxels, self._label_map(index), plane)
        return np.isin(labels[position], self._labels[annotation.target])

    @property
    def case_count(self) -> int:
        return len(self._pairs)

    @property
    def image_paths(self) -> list[Path]:
        return [image for image, _ in self._pairs]

    def cases(self) -> Iterator[Case]:
        for index, (path, _) in enumerate(self._pairs):
            labels = self._label_map(index).voxels
            truths = [Truth(((name,),), np.isin(labels, wanted)) for name, wanted in self._labels.items()]
            yield Case(path.name, self._volume(index)[0], truths)

    def _annotations(self, index: int, plane: str) -> Iterator[Annotation]:
        case = self._pairs[index][0].name
        stack, _ = self._stack(index, plane)
        labels = orient(self._label_map(index).voxels, self._label_map(index), plane)
        for position in range(len(stack)):
            if stack[position].min() == stack[position].max():
                continue
            values = np.unique(labels[position])
            for name, wanted in self._labels.items():
                present = bool(np.isin(wanted, values).any())
                yield Annotation(case, (index, plane, position), name, ((name,),), present)

    def _stack(self, index: int, plane: str) -> tuple[np.ndarray, tuple[float, float]]:
        volume, window = self._volume(index)
        return orient(volume.voxels, volume, plane), window

    @lru_cache(maxsize=1024)  # noqa: B019 - a data set lives as long as the training
    def _volume(self, index: int) -> tuple[Volume, tuple[float, float]]:
        volume = read_volume(self._pairs[index][0])
        return volume, intensity_range(volume)

    @lru_cache(maxsize=1024)  # noqa: B019
    def _label_map(self, index: int) -> Volume:
        labels, (volume, _) = read_volume(self._pairs[index][1]), self._volume(index)
        grids = [(*v.spacing_mm, *v.origin_mm, *v.direction) for v in (labels, volume)]
        if labels.shape != volume.shape or not np.allclose(*grids, atol=1e-3):
            image, label = self._pairs[index]
            raise UserError(f"{label} is not on the grid of {image}; resample it, or its masks would be misplaced")
        return labels


def _pairs_of_split(folder: Path, description: dict, split: str) -> list[tuple[Path, Path]]:
    """Volumes for validation are taken from the training list, spread evenly, when none are named."""
    training = description["training"]
    if split == "test":
        rows = description.get("test", [])
    elif "validation" in description:
        rows = description["validation"] if split == "val" else training
    else:
        step = round(1 / VALIDATION_SHARE)
        held_out = training[step // 2 :: step]
        rows = held_out if split == "val" else [row for row in training if row not in held_out]
    return [(folder / row["image"], folder / row["label"]) for row in rows]


def _label_values(labels: dict) -> dict[str, list[int]]:
    values = {}
    for key, value in labels.items():
        name, numbers = (value, [int(key)]) if key.isdigit() else (key, value)
        numbers = numbers if isinstance(numbers, list) else [int(numbers)]
        if numbers != [0]:
            values[name] = numbers
    return values


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
