"""Read a whole data set and say what is in it and what training would stumble over, without training."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from os import R_OK, access
from pathlib import Path

import numpy as np

from engine.choices import SPLITS
from engine.data import Case, DataSet, Truth, decathlon, open_data_set, shared_images, unnamed_values
from engine.data.masks import odd_share
from engine.data.pictures import PictureSet
from engine.errors import UserError
from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.planes import check_channels, orient
from engine.imaging.volumes.volume import Volume

TINY_VOXELS = 10
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Image:
    """A picture or volume that was read; sizes and spacings run along x, y, z. Nobody has labelled `unknown_share`
    (0..1) of its voxels."""

    split: str
    case: str
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    colour: bool
    flat: bool
    unknown_share: float = 0.0


@dataclass(frozen=True)
class Mask:
    """A mask that was read.

    Attributes:
        voxels: of the structure, or pixels; 0 for an empty mask.
        share: of the image's pixels or voxels, 0..1.
        slices: that show it, in the planes of the training.
        odd_share: of its pixels that are neither the lowest nor the highest value, as at the edges of JPEG masks.
    """

    split: str
    case: str
    structure: str
    wordings: tuple[str, ...]
    voxels: int
    share: float
    slices: int
    odd_share: float = 0.0


@dataclass(frozen=True)
class Problem:
    """What training, validation or testing would stop at, or could not mean as it is (then it does not stop)."""

    split: str
    message: str
    stops: bool = True


@dataclass
class Report:
    """What was found in a folder.

    Attributes:
        unnamed: split -> case -> label value -> how many voxels have it, though nothing names it.
        unlabelled: structure -> the cases whose labels say nothing of it.
    """

    folder: str
    images: list[Image] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unnamed: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    unlabelled: dict[str, list[str]] = field(default_factory=dict)

    @property
    def stops(self) -> int:
        """How many problems a training would stop at."""
        return sum(problem.stops for problem in self.problems)

    def wordings(self, split: str) -> Counter[str]:
        """Return how many masks of a split each wording describes."""
        return Counter(chain.from_iterable(mask.wordings for mask in self.masks if mask.split == split))

    def structures(self, split: str) -> dict[str, list[Mask]]:
        """Return the masks of each structure of a split."""
        found: dict[str, list[Mask]] = defaultdict(list)
        for mask in self.masks:
            if mask.split == split:
                found[mask.structure].append(mask)
        return dict(sorted(found.items()))

    def as_json(self) -> dict:
        counts = {split: dict(self.wordings(split).most_common()) for split in SPLITS}
        return asdict(self) | {"prompts": counts}


def check(
    folder: Path,
    planes: tuple[str, ...],
    channels: str,
    drop_overlap: bool = False,
    on_case: Progress = lambda done, total: None,
) -> Report:
    """Read every picture or volume of all splits, with its masks.

    Args:
        planes, channels, drop_overlap: as for training (see `open_splits`).
        on_case: called with cases read and in all; raise `Cancelled` in it to stop.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of a data set")
    report = Report(str(folder))
    sets = _open(folder, planes, channels, report)
    total, done = sum(data_set.case_count for data_set in sets.values()), 0
    for split, data_set in sets.items():
        for name in data_set.paths:
            _read(report, split, data_set, name, planes, channels)
            done += 1
            on_case(done, total)
    _compare_splits(report, folder, sets, drop_overlap)
    blind = not any(mask.voxels for mask in report.masks if mask.split == "train")
    if "train" in sets and blind and not any(problem.split == "train" for problem in report.problems):
        report.problems.append(Problem("train", "nothing is labelled; nothing can be trained"))
    for split, unnamed in report.unnamed.items():
        message = f"nothing names {unnamed_values(unnamed)}; they count as background"
        report.problems.append(Problem(split, message, stops=False))
    report.remarks += _remarks(report, sets)
    return report


def _remarks(report: Report, sets: dict[str, DataSet]) -> Iterator[str]:
    """Say what training would take, and a person might not have meant."""
    trained = report.structures("train").keys()
    for split, data_set in sets.items():
        if not data_set.case_count:
            yield f"the split '{split}' has no images"
        if untrained := report.structures(split).keys() - trained:
            yield f"the split '{split}' has structures that are not in 'train': {', '.join(sorted(untrained))}"
    for structure, cases in report.unlabelled.items():
        yield (
            f"the labels of {len(cases)} volume(s), such as {cases[0]}, say nothing of '{structure}', which is "
            "neither trained nor measured there"
        )
    if report.unlabelled and (Path(report.folder) / decathlon.DESCRIPTION).is_file():
        yield 'where label maps without a voxel of a structure say that it is absent, list it as "labelled" in ' + (
            f'{decathlon.DESCRIPTION}: "labelled": ["{next(iter(report.unlabelled))}"]'
        )
    if partly := [image for image in report.images if image.unknown_share]:
        largest = max(partly, key=lambda image: image.unknown_share)
        yield (
            f"{len(partly)} volume(s) have voxels that nobody has labelled, most in {largest.case}: "
            f"{largest.unknown_share:.1%}; they are out of the loss and of the figures"
        )
    tiny = [mask for mask in report.masks if 0 < mask.voxels < TINY_VOXELS]
    if tiny:
        names = ", ".join(f"{mask.structure} in {mask.case}" for mask in tiny[:3])
        yield f"{len(tiny)} mask(s) show fewer than {TINY_VOXELS} pixels or voxels, such as {names}"
    odd = [mask for mask in report.masks if mask.odd_share]
    if odd:
        worst = max(odd, key=lambda mask: mask.odd_share)
        yield (
            f"{len(odd)} mask(s) hold values between 0 and 255, as JPEG leaves at edges; above 127 counts as the "
            f"structure (most in {worst.case}: {worst.odd_share:.1%} of its pixels)"
        )


def _open(folder: Path, planes: tuple[str, ...], channels: str, report: Report) -> dict[str, DataSet]:
    sets = {}
    for split in SPLITS:
        with _noting(report, split):
            sets[split] = open_data_set(folder, split, planes, channels)
    return sets


@contextmanager
def _noting(report: Report, split: str, case: str = "") -> Iterator[None]:
    """Turn a `UserError` into a problem of a report, unless it is known."""
    try:
        yield
    except UserError as error:
        message = str(error) if case in str(error) else f"{case}: {error}"
        if message not in [problem.message for problem in report.problems]:
            report.problems.append(Problem(split, message))


def _read(report: Report, split: str, data_set: DataSet, name: str, planes: Sequence[str], channels: str) -> None:
    with _noting(report, split, name):
        case = data_set.case(name)
        volume, flat = case.volume, isinstance(data_set, PictureSet)
        known = next((truth.known for truth in case.truths if truth.known is not None), np.True_)
        size, unknown = volume.shape[::-1], 1 - float(known.mean())
        report.images.append(Image(split, name, size, volume.spacing_mm, volume.is_rgb, flat, unknown))
        if case.unnamed:
            report.unnamed.setdefault(split, {})[name] = case.unnamed
        for structure in case.unlabelled:
            report.unlabelled.setdefault(structure, []).append(name)
        for truth in case.truths:
            with _noting(report, split, name):
                odd = odd_share(truth.path) if flat else 0.0
                report.masks.append(_mask(split, case, truth, planes, odd))
        report.remarks += [f"{name}: {warning}" for warning in volume.warnings]
        check_channels(volume, channels)
        intensity_range(volume)


def _mask(split: str, case: Case, truth: Truth, planes: Sequence[str], odd: float) -> Mask:
    mask = truth.mask
    wordings = tuple(dict.fromkeys(chain(*truth.prompts)))
    slices = _slices(mask, case.volume, planes) if mask.any() else 0
    voxels = int(mask.sum())
    return Mask(split, case.name, truth.structure, wordings, voxels, voxels / mask.size, slices, odd)


def _slices(mask: np.ndarray, volume: Volume, planes: Sequence[str]) -> int:
    if len(mask) == 1:
        return 1
    return sum(int(orient(mask, volume, plane).any(axis=(1, 2)).sum()) for plane in planes)


def _compare_splits(report: Report, folder: Path, sets: dict[str, DataSet], drop_overlap: bool) -> None:
    there = {}
    for split, data_set in sets.items():
        missing = [path for path in data_set.paths.values() if not access(path, R_OK)]
        there[split] = open_data_set(folder, split, left_out=missing) if missing else data_set
    for split, overlaps in shared_images(there).items():
        for overlap in overlaps:
            message = f"shared between splits: {overlap}"
            if drop_overlap:
                report.remarks.append(f"left out of '{split}', as it is {message}")
            else:
                report.problems.append(Problem(split, message))


def choose_masks(masks: Sequence[Mask], count: int) -> list[Mask]:
    """Return some masks, spread over splits, structures and cases; empty ones only where a structure has no other.

    They are always the same ones, in the order of splits and structures.
    """
    groups: dict[tuple[str, str], list[Mask]] = defaultdict(list)
    for mask in masks:
        groups[mask.split, mask.structure].append(mask)
    structures = sorted({mask.structure for mask in masks})

    def turn(group: tuple[str, str]) -> tuple[int, int]:
        split, structure = SPLITS.index(group[0]), structures.index(group[1])
        return (split + structure) % len(SPLITS), structure

    queues = [_shuffled(groups[group], seed) for seed, group in enumerate(sorted(groups, key=turn))]
    chosen: list[Mask] = []
    while len(chosen) < count and any(queues):
        taken = [queue.pop() for queue in queues if queue]
        chosen += taken[: count - len(chosen)]
    return sorted(chosen, key=lambda mask: (SPLITS.index(mask.split), mask.structure, mask.case))


def _shuffled(masks: Sequence[Mask], seed: int) -> list[Mask]:
    shown = [mask for mask in masks if mask.share] or masks
    return [shown[index] for index in np.random.default_rng(seed).permutation(len(shown))]


def read_masks(
    folder: Path, masks: Sequence[Mask], planes: tuple[str, ...], channels: str
) -> Iterator[tuple[Mask, Volume, np.ndarray]]:
    """Read chosen masks again, each with its volume."""
    sets = {split: open_data_set(folder, split, planes, channels) for split in {mask.split for mask in masks}}
    for mask in masks:
        case = sets[mask.split].case(mask.case)
        truth = next(truth for truth in case.truths if truth.structure == mask.structure)
        yield mask, case.volume, truth.mask
