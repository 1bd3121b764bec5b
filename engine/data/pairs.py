"""Volumes with the segmentations that 3D Slicer saves beside them: `NAME.nii.gz` and `NAME.seg.nrrd`."""

from collections import defaultdict
from functools import partial
from pathlib import Path

from engine.choices import SPLITS
from engine.data.annotations import held_out
from engine.data.descriptions import read_json
from engine.data.volumes import Study
from engine.errors import UserError
from engine.imaging.formats import SEGMENTATION_SUFFIX
from engine.imaging.labels import read_segmentation, segment_names
from engine.imaging.reading import VOLUME_SUFFIXES, image_suffix

SPLITS_FILE = "splits.json"
LABEL_ENDING = "-label"  # what Slicer adds to a volume's name


def is_layout(folder: Path) -> bool:
    return any(_segmentations(part) for part in _folders(folder))


def find_studies(folder: Path, split: str) -> tuple[list[Study], list[str]]:
    """Return the studies of a split, and the names of the segments of all splits.

    The pairs lie in the folder itself or in sub-folders, one for each patient (or study). A sub-folder's only
    volume and only segmentation belong together whatever their names. Volumes without a segmentation are left out.

    Which study is in which split stands in `splits.json`, by the names of volumes or sub-folders; without it,
    every tenth patient is for validation, and none for testing.

    Raises:
        UserError: a segmentation without a volume, one that cannot be read, or a `splits.json` that does not fit.
    """
    studies = [study for part in _folders(folder) for study in _studies(folder, part)]
    names = dict.fromkeys(name for study in studies for name in segment_names(study.labels))
    if (folder / SPLITS_FILE).is_file():
        chosen = _chosen_splits(folder / SPLITS_FILE, studies)
    else:
        validation = held_out([study.patient for study in studies])
        chosen = {study.name: "val" if study.patient in validation else "train" for study in studies}
    return [study for study in studies if chosen[study.name] == split], [*names]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]


def _segmentations(part: Path) -> list[Path]:
    return sorted(path for path in part.glob(f"[!.]*{SEGMENTATION_SUFFIX}") if path.is_file())


def _studies(folder: Path, part: Path) -> list[Study]:
    segmentations = _segmentations(part)
    volumes = [p for p in sorted(part.iterdir()) if _is_volume(p)] if segmentations else []
    by_stem = {_stem(path): path for path in volumes}
    if len(by_stem) < len(volumes):
        raise UserError(f"{part} holds two volumes of one name with different suffixes; keep one of them")
    studies = []
    for path in segmentations:
        stem = path.name.removesuffix(SEGMENTATION_SUFFIX)
        volume = by_stem.get(stem) or by_stem.get(stem.removesuffix(LABEL_ENDING))
        if volume is None and part != folder and len(volumes) == len(segmentations) == 1:
            volume = volumes[0]
        if volume is None:
            raise UserError(f"{path} has no volume beside it, such as {stem}.nii.gz; give both one name")
        name = volume.relative_to(folder).as_posix()
        patient = part.name if part != folder else _stem(volume)
        studies.append(Study(name, volume, path, partial(read_segmentation, path), patient))
    twice = {study.name for study in studies if [s.image for s in studies].count(study.image) > 1}
    if twice:
        raise UserError(f"{part} holds two segmentations of {', '.join(sorted(twice))}; keep one of them")
    return studies


def _is_volume(path: Path) -> bool:
    hidden, segmentation = path.name.startswith("."), path.name.endswith(SEGMENTATION_SUFFIX)
    return path.is_file() and not hidden and not segmentation and image_suffix(path) in VOLUME_SUFFIXES


def _stem(path: Path) -> str:
    return path.name[: -len(image_suffix(path))]


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _chosen_splits(path: Path, studies: list[Study]) -> dict[str, str]:
    """Return study -> split.

    Raises:
        UserError: an unknown split or name, a study that is named twice, or one that is not named.
    """
    listed = read_json(path)
    if not isinstance(listed, dict) or not all(map(_is_list_of_names, listed.values())):
        raise UserError(
            f'{path} is no table of splits; write {{"train": [names], "val": [names], "test": [names]}}'
        )
    if unknown := listed.keys() - set(SPLITS):
        raise UserError(f"{path} names unknown splits: {', '.join(sorted(unknown))}; there are {', '.join(SPLITS)}")
    meant: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        for name in {study.name, study.image.name, _stem(study.image), study.patient}:
            meant[name].append(study)
    chosen: dict[str, str] = {}
    for split, names in listed.items():
        for name in names:
            if name not in meant:
                raise UserError(f"{path} names '{name}' in '{split}', and there is no such volume or sub-folder")
            for study in meant[name]:
                if study.name in chosen:
                    raise UserError(f"{path} names {study.name} twice; give it one split")
                chosen[study.name] = split
    missing = [study.name for study in studies if study.name not in chosen]
    if missing:
        raise UserError(f"{path} gives no split to {', '.join(missing[:5])} ({len(missing)} in all); add them")
    return chosen
