"""What tells apart the volumes of one series whose slices lie at the same places."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from pydicom.datadict import dictionary_description

from engine.imaging.dicom.slices import Slice

UNEVEN_MM = 0.05  # positions are written with a few digits; a missing slice differs by far more
# The most telling first.
TELLING = {
    "AcquisitionNumber": "acquisition",
    "FrameAcquisitionNumber": "acquisition",
    "EchoNumbers": "echo",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "TemporalPositionIdentifier": "time point",
    "TemporalPositionIndex": "time point",
    "TemporalPositionTimeOffset": "time",
    "StackID": "stack",
    "DiffusionBValue": "b-value",
    "DiffusionDirectionality": "diffusion",
    "DiffusionGradientOrientation": "gradient",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger time",
    "InversionTime": "inversion time",
    "InversionTimes": "inversion time",
    "FlipAngle": "flip angle",
    "RepetitionTime": "repetition time",
    "ImageType": "image type",
    "FrameType": "image type",
    "ComplexImageComponent": "complex component",
    "KVP": "kVp",
    "ConvolutionKernel": "kernel",
    "SliceThickness": "slice thickness",
    "AcquisitionTime": "acquisition time",
}
FILE = "file"  # in place of an attribute: the file itself, where it holds several slices
Volumes = list[tuple[str, list[int]]]  # words for each, and the indices of its slices


def told_apart(slices: Sequence[Slice], along_mm: np.ndarray) -> list[tuple[str, list[Slice]]]:
    """Return slices in groups in which no two lie at one place, each with words for it; all in one, without words,
    where there is no need, or no way.

    Of all attributes, and pairs and triples of them, that do it, the one that makes the fewest groups is taken,
    but the dimensions of enhanced images before all. Where none does it well, the slices at each place are counted
    off by their image numbers.

    Args:
        along_mm: (slices,), rising: their places along their normal.
    """
    places = np.concatenate([[0], np.cumsum(np.diff(along_mm) >= UNEVEN_MM)])
    most = max(Counter(places.tolist()).values())
    volumes: Volumes | None = None
    if most > 1 or not _is_even(along_mm):
        volumes = _by_attributes(slices, along_mm, places, most)
    even = _is_even(along_mm[np.unique(places, return_index=True)[1]])
    if most > 1 and (volumes is None or (len(volumes) > most and even)):
        volumes = _counted_off(slices, places, most) or volumes
    if volumes is None:
        return [("", list(slices))]
    return [(words, [slices[index] for index in group]) for words, group in volumes]


def _by_attributes(slices: Sequence[Slice], along_mm: np.ndarray, places: np.ndarray, most: int) -> Volumes | None:
    values = {key: [_value(s, key) for s in slices] for key in TELLING}
    dimensions = _dimensions(slices, places)
    counts = Counter(s.file for s in slices)
    values |= dimensions | {FILE: [s.file.name if counts[s.file] > 1 else "" for s in slices]}
    varying = [key for key in values if len(set(values[key])) > 1]
    best: dict[tuple[str, ...], list[int]] | None = None
    best_keys: tuple[str, ...] = ()
    for keys in _trials(tuple(dimensions), varying):
        groups = _grouped(values, keys)
        fewer = best is None or len(groups) < len(best)
        if fewer and _is_answer([along_mm[group] for group in groups.values()], most):
            best, best_keys = groups, keys
            if len(groups) == most:
                break
    if best is None:
        return None
    parts = list(best.values())
    plain = [key for key in varying if key in TELLING]  # its words say more than a dimension's numbers
    said = next((keys for keys in _trials((), plain) if list(_grouped(values, keys).values()) == parts), best_keys)
    words = TELLING | {key: key for key in (*dimensions, FILE)}
    return [
        (", ".join(f"{words[key]} {values[key][group[0]] or '-'}" for key in said), group)
        for _, group in sorted(best.items(), key=lambda item: [_rank(value) for value in item[0]])
    ]


def _trials(dimensions: tuple[str, ...], varying: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if dimensions:
        yield from (dimensions, (*dimensions, FILE))
    for count in (1, 2, 3):
        yield from combinations(varying, count)


def _grouped(values: dict[str, list[str]], keys: tuple[str, ...]) -> dict[tuple[str, ...], list[int]]:
    groups = defaultdict(list)
    for index, kind in enumerate(zip(*(values[key] for key in keys), strict=True)):
        groups[kind].append(index)
    return groups


def _dimensions(slices: Sequence[Slice], places: np.ndarray) -> dict[str, list[str]]:
    """Return the indices of enhanced images (DimensionIndexValues, PS3.3 C.7.6.17) that differ among slices at one
    place, by what they count; the others say where the slices lie."""
    rows = [_numbers(s.values.get("DimensionIndexValues")) for s in slices]
    if not rows[0] or len({len(row) for row in rows}) > 1:
        return {}
    described = list(slices[0].values.get("DimensionIndexSequence") or [])
    dimensions = {}
    for number, column in enumerate(zip(*rows, strict=True)):
        if len(set(zip(places.tolist(), column, strict=True))) > places[-1] + 1:
            name = _name_of(described[number]) if number < len(described) else ""
            dimensions[f"{name or 'dimension'} ({number + 1})"] = list(column)
    return dimensions


def _name_of(dimension) -> str:
    label, pointer = dimension.get("DimensionDescriptionLabel"), dimension.get("DimensionIndexPointer")
    try:
        return str(label or dictionary_description(pointer)).lower()
    except (KeyError, TypeError, ValueError):
        return ""


def _numbers(value: object) -> list[str]:
    return [] if value is None else [str(v) for v in np.ravel(value)]


def _counted_off(slices: Sequence[Slice], places: np.ndarray, most: int) -> Volumes | None:
    """Return the first, second, … slice at each place, in the order of their image numbers (InstanceNumber) and
    frames, where every place has as many, and they run through volume after volume, or place after place."""
    one_file = len({s.file for s in slices}) == 1
    numbers = [(0 if one_file else _whole(s.values.get("InstanceNumber")), s.frame) for s in slices]
    if len(slices) != most * (places[-1] + 1) or None in dict(numbers) or len(set(numbers)) < len(numbers):
        return None
    order = sorted(range(len(slices)), key=numbers.__getitem__)
    volumes = [[] for _ in range(most)]
    seen: Counter[int] = Counter()
    for index in order:
        volumes[seen[places[index]]].append(index)
        seen[places[index]] += 1
    by_volume = order == [index for volume in volumes for index in volume]
    by_place = all(np.ptp(places[order[start : start + most]]) == 0 for start in range(0, len(order), most))
    if not (by_volume or by_place):
        return None
    return [(f"volume {number} by image numbers", volume) for number, volume in enumerate(volumes, start=1)]


def _is_answer(groups: list[np.ndarray], most: int) -> bool:
    """Return whether groups of places are volumes: none has two at one place, and they are not mere single slices;
    where nothing lay at one place before, each must be even by itself."""
    if any(np.diff(group).min(initial=np.inf) < UNEVEN_MM for group in groups):
        return False
    if most == 1:
        return len(groups) > 1 and all(len(group) > 2 and _is_even(group) for group in groups)
    return len(groups) == most or 2 * len(groups) <= sum(map(len, groups))


def _is_even(along_mm: np.ndarray) -> bool:
    return len(along_mm) < 3 or np.ptp(np.diff(along_mm)) <= UNEVEN_MM


def _value(slice_: Slice, keyword: str) -> str:
    value = slice_.values.get(keyword)
    if value is None:
        return ""
    return "/".join(map(str, value)) if not isinstance(value, str) and hasattr(value, "__iter__") else str(value)


def _whole(value: object) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _rank(value: str) -> tuple[float, str]:
    try:
        return (float(value), "")
    except ValueError:
        return (np.inf, value)
