"""Figures: against MONAI's and against cases that can be counted by hand."""

import numpy as np
import pytest
import torch
from conftest import ball, make_adapter
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from engine.data import open_data_set
from engine.evaluation import by_structure, evaluate, means
from engine.metrics import dice, hausdorff_95, intersection_over_union
from engine.segmenter import Segmenter

ISOTROPIC = (1.0, 1.0, 1.0)


def pixel(*position, shape=(1, 20, 30)):
    mask = np.zeros(shape, bool)
    mask[position] = True
    return mask


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (0.5, 0.7, 3.0)])
@pytest.mark.parametrize("shape", [(12, 20, 16), (1, 20, 16)])
def test_the_figures_are_monais(shape, spacing_mm):
    random = np.random.default_rng(0)
    for _ in range(5):
        center = random.uniform(0.3, 0.7, 3) * shape
        first, second = ball(shape, center, 5), ball(shape, center + random.uniform(-2, 2, 3) * (shape[0] > 1), 4)
        tensors = [torch.from_numpy(m[None, None] if shape[0] > 1 else m[None]).float() for m in (first, second)]
        counts = int((first & second).sum()), int(first.sum()), int(second.sum())
        assert dice(*counts) == pytest.approx(compute_dice(*tensors).item())
        assert intersection_over_union(*counts) == pytest.approx(compute_iou(*tensors).item())
        spacing = spacing_mm[::-1] if shape[0] > 1 else spacing_mm[1::-1]
        expected = compute_hausdorff_distance(*tensors, percentile=95, spacing=list(spacing)).item()
        assert hausdorff_95(first, second, spacing_mm) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        (pixel(0, 5, 5), pixel(0, 5, 5), 0.0),
        (pixel(0, 5, 5), pixel(0, 5, 8), 3.0),
        (pixel(0, 5, 5), pixel(0, 8, 9), 5.0),
        (pixel(0, 5, slice(0, 10)), pixel(0, 6, slice(0, 10)), 1.0),  # two lines that touch
        (pixel(0, 5, 5), pixel(0, slice(0, 0), 0), float("nan")),
        (pixel(0, slice(0, 0), 0), pixel(0, slice(0, 0), 0), float("nan")),
    ],
)
def test_distances_that_can_be_counted_by_hand(first, second, distance):
    assert hausdorff_95(first, second, ISOTROPIC) == pytest.approx(distance, nan_ok=True)
    assert hausdorff_95(second, first, ISOTROPIC) == pytest.approx(distance, nan_ok=True)


def test_a_volumes_distance_is_in_millimetres():
    shape = (10, 10, 10)
    first, second = pixel(2, 5, 5, shape=shape), pixel(4, 5, 5, shape=shape)
    assert hausdorff_95(first, second, (1.0, 1.0, 2.5)) == pytest.approx(5.0)


@pytest.fixture
def everywhere(tmp_path, tiny_base):
    """A segmenter that finds everything everywhere."""
    adapter = make_adapter(tmp_path / "everywhere", tiny_base, threshold=1e-4, presence_threshold=0.0)
    return Segmenter(str(adapter), device="cpu", precision="fp32")


def test_a_volume_counts_once_with_all_its_slices(volumes, everywhere):
    data_set = open_data_set(volumes, "val")
    scores = evaluate(everywhere, data_set)
    assert [(s.case, s.structure) for s in scores] == [("5.nii.gz", "ball"), ("5.nii.gz", "cube")]
    voxels, truth = 12 * 16 * 20, int(ball((12, 16, 20), (6, 8, 6), 3).sum())
    assert (scores[0].result_voxels, scores[0].truth_voxels) == (voxels, truth)
    assert scores[0].dice == pytest.approx(2 * truth / (voxels + truth))
    assert scores[0].iou == pytest.approx(truth / voxels)


def test_pictures_are_measured_at_their_own_size_by_any_prompt(pictures, everywhere):
    asked = []

    def longest(truth, case):
        asked.append(case)
        return truth.prompts[-1][0]

    scores = evaluate(everywhere, open_data_set(pictures, "train"), choose_prompt=longest)
    assert {s.prompt for s in scores} == {"bright disc"} and {s.structure for s in scores} == {"disc"}
    assert asked == [s.case for s in scores] and len(asked) == 2
    assert all(s.result_voxels == 40 * 50 for s in scores)


def test_means_say_how_many_cases_they_are_of(volumes, everywhere):
    scores = evaluate(everywhere, open_data_set(volumes, "val"))
    figures = by_structure(scores)
    assert figures["ball"]["cases"] == figures["ball"]["hd95_cases"] == 1
    nothing = [*scores, type(scores[0])("x", "ball", "ball", 0.0, 0.0, float("nan"), 0.1, 9, 0)]
    total = means(nothing)
    assert (total["cases"], total["hd95_cases"]) == (3, 2)
    assert total["dice"] == pytest.approx(np.mean([s.dice for s in nothing]), abs=1e-4)
