"""Measure an adapter on labelled images as a user would run it, at their original resolution."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data import DataSet, Truth
from engine.metrics import dice, hausdorff_95, intersection_over_union
from engine.segmenter import Segmenter


@dataclass(frozen=True)
class Score:
    """How one prompt did in one case (a picture, or a whole volume).

    Attributes:
        prompt: what was asked for.
        structure: the plain class prompt of the same structure.
        dice, iou: 0..1; see `metrics` for empty masks.
        hd95: in mm, in pixels for pictures; NaN where a mask is empty.
        presence: 0..1.
        truth_voxels, result_voxels: the sizes of both masks.
    """

    case: str
    prompt: str
    structure: str
    dice: float
    iou: float
    hd95: float
    presence: float
    truth_voxels: int
    result_voxels: int


def plain_prompt(truth: Truth, case: str) -> str:
    """Choose the plain class prompt of a structure."""
    return truth.prompts[0][0]


def evaluate(
    segmenter: Segmenter,
    data_set: DataSet,
    choose_prompt: Callable[[Truth, str], str] = plain_prompt,
    on_case: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Segment every case, and compare.

    Args:
        choose_prompt: the wording to ask with, from a structure and the name of its case.
        on_case: called after each case; raise `Cancelled` in it to stop.
    """
    scores = []
    for case in data_set.cases():
        segmenter.set_volume(case.volume)
        for truth in case.truths:
            result = segmenter.segment(choose_prompt(truth, case.name))
            mask = result.mask()
            counts = int((mask & truth.mask).sum()), int(mask.sum()), int(truth.mask.sum())
            scores.append(
                Score(
                    case=case.name,
                    prompt=result.prompt,
                    structure=plain_prompt(truth, case.name),
                    dice=dice(*counts),
                    iou=intersection_over_union(*counts),
                    hd95=hausdorff_95(mask, truth.mask, case.volume.spacing_mm),
                    presence=result.presence,
                    truth_voxels=counts[2],
                    result_voxels=counts[1],
                )
            )
        on_case()
    return scores


def by_structure(scores: Iterable[Score]) -> dict[str, dict[str, float]]:
    """Return {structure: means}: Dice, IoU and HD95 with the count of cases that each is the mean of."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.structure].append(score)
    return {structure: means(group) for structure, group in groups.items()}


def means(scores: Sequence[Score]) -> dict[str, float | int | None]:
    """Return the means of Dice and IoU over all cases, and of HD95 over those where both masks have a voxel."""
    distances = [score.hd95 for score in scores if not np.isnan(score.hd95)]
    return {
        "dice": round(float(np.mean([score.dice for score in scores])), 4),
        "iou": round(float(np.mean([score.iou for score in scores])), 4),
        "hd95": round(float(np.mean(distances)), 2) if distances else None,
        "cases": len(scores),
        "hd95_cases": len(distances),
    }
