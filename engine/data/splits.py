"""Open a folder in whichever layout it is, and see that its splits share nothing."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.choices import SPLITS
from engine.data import decathlon, described, pairs, pictures
from engine.data.annotations import DataSet
from engine.data.descriptions import read_wordings
from engine.data.volumes import VolumeSet
from engine.errors import UserError
from engine.files import sha256_of
from engine.imaging.volumes.planes import SLICE

PICTURES = ((pictures.is_layout, pictures.open_pictures), (described.is_layout, described.open_described))


def open_data_set(
    folder: Path,
    split: str,
    planes: tuple[str, ...] = ("axial",),
    channels: str = SLICE,
    left_out: Iterable[Path] = (),
) -> DataSet:
    """Open a folder in any of the layouts; volumes are read when they are asked for.

    Args:
        folder: holds `anns/{train,val,test}.json` (MedVLSM), `Train_Folder/` and its like (LViT, MedCLIPSeg),
            `dataset.json` (Decathlon, nnU-Net), or volumes with segmentations of 3D Slicer (`NAME.seg.nrrd`) beside
            them.
        split: train, val or test.
        planes: the planes in which volumes are sliced; pictures ignore it.
        channels: "slice", or "2.5d" for each slice of a volume with its neighbours.
        left_out: images that are not wanted, by their paths.

    Raises:
        UserError: the folder is in none of the layouts, or a file that describes it is missing or not valid.
    """
    left_out = frozenset(left_out)
    for is_layout, open_layout in PICTURES:
        if is_layout(folder) and channels != SLICE:
            raise UserError(f"{folder} holds pictures, which have no neighbouring slices; use --channels {SLICE}")
        if is_layout(folder):
            return open_layout(folder, split, left_out)
    if (folder / decathlon.DESCRIPTION).is_file():
        studies, labels = decathlon.find_studies(folder, split)
    elif pairs.is_layout(folder):
        studies, labels = pairs.find_studies(folder, split)
    else:
        raise UserError(
            f"{folder} holds neither anns/train.json nor Train_Folder (pictures), nor dataset.json nor .seg.nrrd "
            "files beside volumes"
        )
    wanted = [study for study in studies if study.image not in left_out]
    return VolumeSet(folder.name, wanted, read_wordings(folder, labels), planes, channels)


def is_data_set(folder: Path) -> bool:
    """Return whether a folder is in any of the layouts."""
    layouts = (*(is_layout for is_layout, _ in PICTURES), pairs.is_layout)
    return (folder / decathlon.DESCRIPTION).is_file() or any(is_layout(folder) for is_layout in layouts)


def open_splits(
    folder: Path,
    planes: tuple[str, ...],
    channels: str = SLICE,
    drop_overlap: bool = False,
    keep_overlap: bool = False,
) -> dict[str, DataSet]:
    """Open all splits of a folder, which must not share an image (by the bytes of the files) or a patient.

    Args:
        drop_overlap: leave what two splits share out of the later one (of train, val, test).
        keep_overlap: take the splits as they are.

    Raises:
        UserError: two splits share something and neither `drop_overlap` nor `keep_overlap` is given; see also
            `open_data_set`.
    """
    sets = {split: open_data_set(folder, split, planes, channels) for split in SPLITS}
    if keep_overlap:
        return sets
    for split, overlaps in shared_images(sets).items():
        if overlaps and not drop_overlap:
            raise UserError(
                f"{folder}: the split '{split}' shares {len(overlaps)} image(s) with others, such as "
                f"{overlaps[0]}, which flatters the figures; add --drop-overlap to leave them out"
            )
        if overlaps:
            left_out = [overlap.path for overlap in overlaps]
            sets[split] = open_data_set(folder, split, planes, channels, left_out)
    return sets


def spread_evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """Return `count` of the paths, spread evenly over them; all where there are no more."""
    return [paths[len(paths) * index // count] for index in range(count)] if count < len(paths) else list(paths)


@dataclass(frozen=True)
class Overlap:
    """An image that is in two splits, or whose patient is: `path` in the later one, `twin` in `split`."""

    path: Path
    twin: Path
    split: str
    patient: str | None = None

    def __str__(self) -> str:
        twins = f"{self.path.name} with {self.twin.name} in '{self.split}'"
        return twins if self.patient is None else f"{twins} (both of patient {self.patient})"


def shared_with_earlier(folder: Path, split: str) -> list[Overlap]:
    """Return what a split shares with those before it, as far as these can be opened."""
    sets = {}
    for name in SPLITS[: SPLITS.index(split) + 1]:
        with suppress(UserError):
            sets[name] = open_data_set(folder, name)
    try:
        return shared_images(sets).get(split, [])
    except UserError:  # a file is missing
        return []


def overlap_warning(split: str, overlaps: Sequence[Overlap]) -> str:
    """Return what is to be said of images that a split shares with others."""
    count = f"{len(overlaps)} image(s) of the split '{split}' are also in others, such as {overlaps[0]}"
    return f"{count}, which flatters the figures"


def shared_images(sets: dict[str, DataSet]) -> dict[str, list[Overlap]]:
    """Return what each split shares with one before it.

    Raises:
        UserError: a file cannot be read.
    """
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    overlaps: dict[str, list[Overlap]] = {split: [] for split in sets}
    for split, data_set in sets.items():
        for case, path in data_set.paths.items():
            patient = data_set.patients.get(case)
            keys = [("bytes", _hash(path))] + ([("patient", patient)] if patient is not None else [])
            firsts = {kind: seen.setdefault((kind, value), (split, path)) for kind, value in keys}
            other = next((kind for kind, first in firsts.items() if first[0] != split), None)
            if other:
                first, twin = firsts[other]
                overlaps[split].append(Overlap(path, twin, first, patient if other == "patient" else None))
    return overlaps


def _hash(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file, though a split names it")
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}), though a split names it") from error
