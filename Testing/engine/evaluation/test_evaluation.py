"""Figures: against MONAI's and against cases that can be counted by hand."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ball, files, make_adapter, run_command
from matplotlib.image import imread
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

from engine import evaluate as evaluate_module
from engine.data import open_data_set
from engine.errors import UserError
from engine.evaluation.measuring import (
    Rules,
    Score,
    by_structure,
    differences,
    evaluate,
    every,
    gated,
    interval,
    means,
    plain,
    presence_rates,
    prompt_checks,
    random,
    wrong,
)
from engine.evaluation.metrics import dice, hausdorff_95, intersection_over_union
from engine.models.bundle import write_card
from engine.models.presence import Rates
from engine.segmentation.segmenter import Segmenter

ISOTROPIC = (1.0, 1.0, 1.0)
WORDINGS = ("disc", "bright disc", "round thing")


def pixel(*position, shape=(1, 20, 30)):
    mask = np.zeros(shape, bool)
    mask[position] = True
    return mask


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (0.5, 0.7, 3.0)])
@pytest.mark.parametrize("shape", [(12, 20, 16), (1, 20, 16)])
def test_the_figures_are_monais(shape, spacing_mm):
    draw = np.random.default_rng(0)
    for _ in range(5):
        center = draw.uniform(0.3, 0.7, 3) * shape
        first, second = ball(shape, center, 5), ball(shape, center + draw.uniform(-2, 2, 3) * (shape[0] > 1), 4)
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


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pixel(0, 5, 5), pixel(0, 5, 5), (1.0, 1.0)),
        (pixel(0, 5, slice(0, 2)), pixel(0, 5, slice(1, 3)), (1 / 2, 1 / 3)),
        (pixel(0, 5, slice(0, 10)), pixel(0, 6, slice(0, 10)), (0.0, 0.0)),  # two lines that touch
        (pixel(0, 5, 5), pixel(0, slice(0, 0), 0), (0.0, 0.0)),
        (pixel(0, slice(0, 0), 0), pixel(0, slice(0, 0), 0), (1.0, 1.0)),
    ],
)
def test_overlaps_that_can_be_counted_by_hand(first, second, expected):
    counts = int((first & second).sum()), int(first.sum()), int(second.sum())
    assert (dice(*counts), intersection_over_union(*counts)) == pytest.approx(expected)


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
    scores = evaluate(everywhere, open_data_set(volumes, "val"))
    assert [(s.case, s.structure) for s in scores] == [("5.nii.gz", "ball"), ("5.nii.gz", "cube")]
    voxels, truth = 12 * 16 * 20, int(ball((12, 16, 20), (6, 8, 6), 3).sum())
    assert (scores[0].result_share, scores[0].truth_share) == (1.0, truth / voxels)
    assert scores[0].dice == pytest.approx(2 * truth / (voxels + truth))
    assert scores[0].iou == pytest.approx(truth / voxels)


def test_pictures_are_asked_by_every_kind_of_prompt(pictures, everywhere):
    data_set = open_data_set(pictures, "train")
    scores = evaluate(everywhere, data_set, [plain, every, random(7), wrong(["liver"])])
    asked = [(s.case, s.kind, s.prompt) for s in scores if s.case == "0.png"]
    assert asked[:4] == [("0.png", "plain", "disc"), *(("0.png", "every", p) for p in WORDINGS)]
    assert asked[4][2] in WORDINGS and asked[5] == ("0.png", "wrong", "liver")
    assert all(s.structure == "disc" and s.result_share == 1.0 for s in scores)
    again = evaluate(everywhere, data_set, [random(7)])
    assert again == [s for s in scores if s.kind == "random"]


def test_a_wrong_prompt_names_nothing_that_the_case_shows(pictures, volumes, everywhere):
    prompts = ["Bright spot", "cube", "liver", "tooth"]  # "bright disc" is a wording of what the pictures show
    scores = evaluate(everywhere, open_data_set(pictures, "train"), [wrong(prompts)])
    assert {s.prompt for s in scores} <= {"cube", "liver", "tooth"} and len(scores) == 2
    assert evaluate(everywhere, open_data_set(pictures, "train"), [wrong(["bright spot", "DISC"])]) == []
    asked = {s.prompt for s in evaluate(everywhere, open_data_set(volumes, "train"), [wrong(prompts)])}
    assert asked == {"Bright spot", "liver", "tooth"}  # drawn anew for each case, never the cube that all show


def score(dice, kind="plain", case="a", prompt="disc", hd95=1.0, found=0.1, structure="disc"):
    return Score(case, kind, structure, prompt, dice, dice, hd95, 0.9, 0.1, found)


def test_means_say_how_many_cases_they_are_of():
    total = means([score(0.8), score(0.4, hd95=float("nan")), score(0.6, hd95=3.0)])
    assert (total["dice"], total["hd95"], total["cases"], total["hd95_cases"]) == (0.6, 2.0, 3, 2)
    assert total["hd95_interval"] == [1.0, 3.0] and total["dice_interval"] == total["iou_interval"]
    assert means([score(0.0, hd95=float("nan"))])["hd95_interval"] is None
    assert by_structure([score(1.0), score(0.0, structure="cube")])["cube"]["dice"] == 0


def test_the_interval_of_a_mean_narrows_with_more_cases_and_holds_the_mean():
    values = np.random.default_rng(1).uniform(0, 1, 400)
    few, many = interval(values[:25]), interval(values)
    assert few[0] < values[:25].mean() < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert many[1] - many[0] < few[1] - few[0]
    assert interval([0.5]) == (0.5, 0.5)


def test_differences_are_paired_by_question():
    first = [score(0.2, case="a"), score(0.5, case="b"), score(0.9, case="only here")]
    second = [score(0.6, case="b"), score(0.5, case="a")]
    assert differences(first, second) == pytest.approx([0.3, 0.1])  # always in this order


def test_prompt_checks_can_be_counted_by_hand():
    scores = [
        score(0.8, case="a"),
        score(0.6, case="b"),
        score(0.2, "wrong", case="a", found=0.3),
        score(0.2, "wrong", case="a", found=0.3, structure="cube"),  # the same answer, measured by another mask
        score(0.0, "wrong", case="b", found=0.0),
        score(1.0, "absent", case="c", found=0.0),
        score(0.0, case="d", found=0.0),
        score(0.8, "every", case="a"),
        score(0.4, "every", case="a", prompt="round thing"),
        score(0.6, "held out", case="a", prompt="roundel"),
        score(0.6, "held out", case="b", prompt="roundel"),
    ]
    checks = prompt_checks(scores)
    assert checks == pytest.approx(
        {
            "false_positive_share": 0.1,
            "false_positive_rate": 1 / 3,
            "absent_prompts": 3,
            "missed_rate": 1 / 7,
            "present_prompts": 7,
            "held_out_share": 1.2 / 1.4,
            "surviving_share": 0.2 / 1.4,
            "paraphrase_spread": 0.2,
        },
        abs=1e-4,
    )
    assert prompt_checks([score(0.8)]) == {"missed_rate": 0.0, "present_prompts": 1}
    assert presence_rates(scores) == Rates(pytest.approx(1 / 3), pytest.approx(1 / 7), absent=3, present=7)
    assert presence_rates([score(0.8)]) is None
    not_asked = score(1.0, case="c")  # whose Dice with the plain prompt says nothing about the wrong one
    assert prompt_checks([*scores, not_asked])["surviving_share"] == checks["surviving_share"]


@pytest.fixture
def evaluate_command(monkeypatch, capsys):
    return lambda *arguments: run_command(monkeypatch, capsys, evaluate_module.main, *arguments, "--device", "cpu")


def test_the_command_writes_scores_summaries_and_a_picture(evaluate_command, pictures, everywhere, tmp_path):
    adapter, out = tmp_path / "everywhere", tmp_path / "out"
    arguments = ["--data", pictures, "--split", "train", "--adapter", adapter, "-o", out]
    code, _, errors = evaluate_command(*arguments, "--prompts", "p1", "all", "--wrong-prompt", "liver")
    assert code == 0, errors
    assert files(out) == {"scores.csv", "summary.md", "summary.json", "cases.png"}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows if row["case"] == "1.png"] == ["disc", *WORDINGS, "liver"]
    summary = json.loads((out / "summary.json").read_text())["adapters"][str(adapter)]
    dices = [float(row["dice"]) for row in rows if row["kind"] == "plain"]
    assert summary["prompts"]["plain"]["disc"]["dice"] == pytest.approx(np.mean(dices), abs=1e-4)
    checks = summary["prompt_checks"]
    assert (checks["false_positive_rate"], checks["absent_prompts"]) == (1.0, 2)
    assert (checks["missed_rate"], checks["present_prompts"]) == (0.0, 8)
    text = (out / "summary.md").read_text()
    assert "both masks are empty" in text and "95 % bootstrap intervals" in text
    low, high = summary["prompts"]["plain"]["disc"]["iou_interval"]
    assert f"({low:.3f} – {high:.3f})" in text and "Dice against" not in text
    assert imread(out / "cases.png").shape[1] > 1000


def test_held_out_wordings_are_asked_for_and_in_vain(evaluate_command, pictures, everywhere, tmp_path):
    words = tmp_path / "words.yaml"
    words.write_text("disc: {trained: [disc], held_out: [Roundel]}\nliver: {trained: [liver], held_out: [hepar]}")
    arguments = ["--data", pictures, "--split", "train", "--adapter", tmp_path / "everywhere", "--held-out", words]
    code, _, errors = evaluate_command(*arguments, "-o", tmp_path / "out")
    assert code == 0, errors
    with (tmp_path / "out" / "scores.csv").open() as file:
        asked = [(row["kind"], row["prompt"]) for row in csv.DictReader(file) if row["case"] == "1.png"]
    assert asked == [("plain", "disc"), ("held out", "Roundel"), ("wrong", "hepar")]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["adapters"]
    assert (
        summary[str(tmp_path / "everywhere")]["prompt_checks"]["held_out_share"] == 1.0
    )  # it finds all everywhere


def test_adapters_are_compared_case_by_case(evaluate_command, volumes, everywhere, tiny_base, tmp_path):
    strict = make_adapter(tmp_path / "strict", tiny_base, presence_threshold=1.0)
    arguments = ["--data", volumes, "--split", "val", "-o", tmp_path / "out"]
    code, _, errors = evaluate_command(*arguments, "--compare", tmp_path / "everywhere", strict)
    assert code == 0, errors
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "false positive rate 1.000, absent prompts 1, missed rate 0.000, present prompts 2" in text
    assert "false positive rate 0.000, absent prompts 1, missed rate 1.000, present prompts 2" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][-1] == f"Dice against {tmp_path / 'everywhere'}"
    names = [str(tmp_path / "everywhere")] * 3 + [str(strict)] * 3
    assert [(row[0], row[2]) for row in rows[2:]] == list(zip(names, ["ball", "cube", "(all)"] * 2, strict=True))
    assert [row[-1] for row in rows[2:5]] == ["", "", ""]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["adapters"]
    before, after = (summary[str(name)]["prompts"]["plain"]["ball"] for name in (tmp_path / "everywhere", strict))
    assert after["dice_difference"] == pytest.approx(after["dice"] - before["dice"], abs=2e-4)
    assert rows[5][-1].startswith(f"{after['dice_difference']:+.3f} (-")
    assert "dice_difference" not in before
    assert (tmp_path / "out" / "strict" / "cases.png").is_file()


def test_volumes_are_measured_in_the_plane_that_is_asked_for(evaluate_command, volumes, tiny_base, tmp_path):
    adapter = make_adapter(tmp_path / "half", tiny_base)
    segmenter = Segmenter(str(adapter), device="cpu", precision="fp32")
    (case,) = open_data_set(volumes, "val").cases()
    segmenter.set_volume(case.volume)
    threshold = float(np.median(segmenter.segment("ball").probability))
    write_card(adapter, replace(segmenter.card, threshold=threshold))
    expected, measured = [], []
    for plane in ("axial", "sagittal"):
        segmenter.set_volume(case.volume, plane)
        mask, truth = segmenter.segment("ball").mask(threshold), case.truths[0].mask
        expected.append(dice(int((truth & mask).sum()), int(mask.sum()), int(truth.sum())))
        arguments = ["--data", volumes, "--split", "val", "--adapter", adapter, "--precision", "fp32"]
        code, _, errors = evaluate_command(*arguments, "-o", tmp_path / plane, "--plane", plane)
        assert code == 0, errors
        summary = json.loads((tmp_path / plane / "summary.json").read_text())["adapters"][str(adapter)]
        measured.append(summary["prompts"]["plain"]["ball"]["dice"])
    assert measured == pytest.approx(expected, abs=1e-4) and abs(measured[0] - measured[1]) > 0.001


def nearest(mask, shape):
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(shape, mask.shape, strict=True))
    return mask[rows][:, columns]


def test_a_mask_may_be_compared_without_the_presence_gate_and_on_other_grids(pictures, tiny_base, tmp_path):
    strict = make_adapter(tmp_path / "strict", tiny_base, presence_threshold=1.0, noise=0.05)
    segmenter, data_set = Segmenter(str(strict), device="cpu", precision="fp32"), open_data_set(pictures, "train")
    segmenter.set_volume(data_set.case("0.png").volume)
    half = float(np.median(segmenter.square_probability("disc")))
    segmenter.card = replace(segmenter.card, threshold=half)
    closed = evaluate(segmenter, data_set)
    opened = evaluate(segmenter, data_set, rules=Rules(presence_gate=False))
    assert [score.dice for score in closed] == [0, 0] and all(score.result_share > 0 for score in opened)
    without_nan = [replace(gated(score, 1.0), hd95=0) for score in opened]
    assert without_nan == [replace(score, hd95=0) for score in closed]
    assert [gated(score, 0.0) for score in opened] == opened
    for case in data_set.cases():
        segmenter.set_volume(case.volume)
        square = segmenter.square_probability("disc") >= half
        truth = case.truths[0].mask[0]
        expected = {
            "square": (square, nearest(truth, square.shape)),
            "enlarged": (nearest(square, truth.shape), truth),
        }
        for grid, (found, there) in expected.items():
            scores = evaluate(segmenter, data_set, rules=Rules(False, grid))
            (score,) = [score for score in scores if score.case == case.name]
            assert score.dice == dice(int((found & there).sum()), int(found.sum()), int(there.sum()))


def test_other_grids_are_for_pictures(volumes, everywhere):
    with pytest.raises(UserError, match="only pictures are compared on the grid 'square'"):
        evaluate(everywhere, open_data_set(volumes, "val"), rules=Rules(grid="square"))


def test_the_papers_rules_come_with_its_protocol_and_are_said(evaluate_command, pictures, tiny_base, tmp_path):
    strict = make_adapter(tmp_path / "strict", tiny_base, threshold=1e-4, presence_threshold=1.0)
    options = ["--data", pictures, "--adapter", strict, "-o", tmp_path / "out", "--protocol", "paper"]
    code, _, errors = evaluate_command(*options)
    assert code == 0, errors
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "otherwise than by default: no presence gate, masks compared on the picture, enlarged" in text
    with (tmp_path / "out" / "scores.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["kind"] == "random" and float(row["result_share"]) == 1.0
    grey = imread(pictures / "masks" / "3.jpg")
    assert float(row["truth_share"]) == pytest.approx((grey > 0).mean())
    code, _, errors = evaluate_command(*options, "--presence", "on", "--prompts", "p1")
    assert code == 0, errors
    with (tmp_path / "out" / "scores.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["kind"] == "plain" and float(row["result_share"]) == 0.0


def test_prompts_past_77_tokens_are_cut_and_the_report_says_so(evaluate_command, pictures, everywhere, tmp_path):
    rows = json.loads((pictures / "anns" / "test.json").read_text())
    rows[0]["prompts"]["p2"] = ["bright disc " * 60]
    (pictures / "anns" / "test.json").write_text(json.dumps(rows))
    options = ["--data", pictures, "--adapter", tmp_path / "everywhere", "-o", tmp_path / "out"]
    code, _, errors = evaluate_command(*options, "--prompts", "all")
    assert code == 0, errors
    assert "1 prompt(s) of more than 77 tokens were cut" in (tmp_path / "out" / "summary.md").read_text()


def test_images_that_splits_share_are_told_and_can_be_left_out(evaluate_command, pictures, everywhere, tmp_path):
    rows = json.loads((pictures / "anns" / "test.json").read_text())
    (pictures / "images" / "4.png").write_bytes((pictures / "images" / "0.png").read_bytes())
    (pictures / "anns" / "test.json").write_text(
        json.dumps([*rows, rows[0] | {"img_name": "4.png", "mask_name": "0.jpg"}])
    )
    options = ["--data", pictures, "--adapter", tmp_path / "everywhere", "-o", tmp_path / "out"]
    for flags, cases, said in (
        ([], 2, "Warning: 1 image(s) of the split 'test' are also in others, such as 4.png with 0.png"),
        (["--drop-overlap"], 1, "Without 1 image(s) that other splits hold too"),
    ):
        code, _, errors = evaluate_command(*options, *flags)
        assert code == 0, errors
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        (adapter,) = summary["adapters"].values()
        assert adapter["prompts"]["plain"]["disc"]["cases"] == cases and said in summary["remarks"][0]


def test_adapters_of_the_same_name_are_refused(evaluate_command, volumes, everywhere, tmp_path):
    arguments = ["--data", volumes, "--split", "val", "-o", tmp_path / "out"]
    code, _, errors = evaluate_command(*arguments, "--compare", tmp_path / "everywhere", tmp_path / "everywhere")
    assert code == 2 and "the same name" in errors and not (tmp_path / "out").exists()


def test_a_split_without_cases_is_refused(evaluate_command, volumes, everywhere, tmp_path):
    arguments = ["--data", volumes, "--adapter", tmp_path / "everywhere", "-o", tmp_path / "out"]
    code, _, errors = evaluate_command(*arguments)
    assert code == 2 and "has no case in its split 'test'" in errors
