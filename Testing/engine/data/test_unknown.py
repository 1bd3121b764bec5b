"""What nobody has labelled, and what nothing names: out of masks, prompts, losses and figures, and told."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import ball, make_adapter, run_command

from engine import train
from engine.data import open_data_set
from engine.data.checking import check
from engine.errors import UserError
from engine.evaluation.measuring import absent, evaluate, plain, presences, wrong_prompts
from engine.imaging.reading import read_volume
from engine.imaging.volumes.segments import Segment
from engine.imaging.writing import write_segments
from engine.segmentation.segmenter import Segmenter
from engine.training.losses import LOSSES, UNKNOWN
from engine.training.samples import Sampler
from engine.training.trainer import Plan, epoch_positions

SHAPE = (12, 16, 20)
BALL = ball(SHAPE, (6, 8, 6), 3)
CUBE = np.zeros(SHAPE, bool)
CUBE[5:7, 4:8, 14:18] = True
HIDDEN = np.zeros(SHAPE, bool)  # what nobody has labelled: a part of the ball's slices, and of further ones
HIDDEN[5:9, :, 7:13] = True
HIDDEN[10:, 3:9, 3:9] = True


def relabel(folder, change, cases=range(10)):
    for number in cases:
        path = folder / "labelsTr" / f"{number}.nii.gz"
        labels = sitk.GetArrayFromImage(sitk.ReadImage(path))
        sitk.WriteImage(sitk.GetImageFromArray(change(labels).astype(np.int16)), path)


def describe(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def partly_known(volumes):
    """The volumes with the label "ignore" over a part of them."""
    relabel(volumes, lambda labels: np.where(HIDDEN, 3, labels))
    describe(volumes, labels={"background": 0, "ball": 1, "cube": 2, "ignore": 3})
    return volumes


def test_ignore_is_no_structure_and_its_voxels_are_not_known(partly_known):
    data_set = open_data_set(partly_known, "train")
    assert {a.plain_prompt for a in data_set.annotations} == {"ball", "cube"}
    for annotation in data_set.annotations:
        position = annotation.image[2]
        structure = {"ball": BALL, "cube": CUBE}[annotation.plain_prompt][position] & ~HIDDEN[position]
        assert np.array_equal(data_set.mask(annotation), structure)
        assert np.array_equal(data_set.known(annotation), ~HIDDEN[position])
        if not annotation.present:  # only where all of the slice is known
            assert not HIDDEN[position].any()
    shown = {(a.plain_prompt, a.image[2]) for a in data_set.annotations if a.case == "0.nii.gz"}
    assert ("ball", 10) not in shown and ("cube", 8) not in shown and ("cube", 2) in shown
    truths = {t.plain_prompt: t for t in data_set.case("0.nii.gz").truths}
    assert np.array_equal(truths["ball"].known, ~HIDDEN) and np.array_equal(truths["ball"].mask, BALL & ~HIDDEN)
    report = check(partly_known, ("axial",), "slice")
    assert not report.problems
    share = f"10 volume(s) have voxels that nobody has labelled, most in 0.nii.gz: {HIDDEN.mean():.1%}"
    assert share in " ".join(report.remarks)


def test_a_segment_named_ignore_is_not_known_either(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(size=SHAPE)), tmp_path / "a.nrrd")
    masks = {"ball": BALL, "Ignore": HIDDEN, "cube": CUBE & False}
    segments = [Segment(name, mask, (1, 0, 0)) for name, mask in masks.items()]
    write_segments(tmp_path / "a.seg.nrrd", segments, read_volume(tmp_path / "a.nrrd"))
    data_set = open_data_set(tmp_path, "train")
    (truth,) = data_set.case("a.nrrd").truths  # the cube may be where nobody has labelled
    assert truth.plain_prompt == "ball" and np.array_equal(truth.known, ~HIDDEN)
    assert {a.plain_prompt for a in data_set.annotations} == {"ball"}


def test_samples_hold_what_is_known_of_each_pixel(partly_known):
    data_set = open_data_set(partly_known, "train")
    position = next(i for i, a in enumerate(data_set.annotations) if a.target == "ball" and a.image[2] == 6)
    for side in (160, 40):
        sample = Sampler(data_set, side).draw(position, (0,))
        rows, columns = (np.arange(side) * n // side for n in (16, 20))
        expected = np.where(HIDDEN[6], UNKNOWN, BALL[6])[np.ix_(rows, columns)]
        assert (sample.masks[0].numpy() != expected).mean() < 0.05  # at edges between pixels
        assert set(sample.masks.unique().tolist()) == {-1, 0, 1}
    augmented = Sampler(data_set, 160, augment=True, mirror=True)
    values = [set(augmented.draw(position, (seed,)).masks.unique().tolist()) for seed in range(9)]
    assert {-1, 0, 1} in values and all(found <= {-1, 0, 1} for found in values)


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_that_are_not_known_are_out_of_the_loss(name):
    torch.manual_seed(0)
    loss_of, masks = LOSSES[name](), (torch.rand(2, 8, 8) > 0.5).float()
    masks[0, :, 4:] = UNKNOWN
    logits = torch.randn(2, 8, 8, requires_grad=True)
    loss = loss_of(logits, masks)
    loss.backward()
    assert not logits.grad[0, :, 4:].any() and logits.grad[0, :, :4].all() and logits.grad[1].all()
    other = torch.where(masks == UNKNOWN, 50.0, logits.detach())
    assert loss_of(other, masks).item() == loss.item()
    alone = loss_of(logits[:1, :, :4], masks[:1, :, :4])
    assert loss.item() == pytest.approx((alone + loss_of(logits[1:], masks[1:])).item() / 2)
    nothing = loss_of(logits[:1], torch.full((1, 8, 8), float(UNKNOWN)))
    assert math.isfinite(nothing.item()) and not torch.autograd.grad(nothing, logits)[0].any()


def test_voxels_that_are_not_known_are_out_of_the_figures(partly_known, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "everywhere", tiny_base, threshold=1e-4, presence_threshold=0.0)
    everywhere = Segmenter(str(adapter), device="cpu", precision="fp32")
    scores = evaluate(everywhere, open_data_set(partly_known, "val"))
    for score, mask in zip(scores, (BALL, CUBE), strict=True):
        truth, found = (mask & ~HIDDEN).sum(), (~HIDDEN).sum()
        assert score.dice == pytest.approx(2 * truth / (truth + found))
        assert (score.truth_share, score.result_share) == pytest.approx((truth / mask.size, found / mask.size))


def test_a_map_without_a_structure_says_nothing_of_it(volumes, tmp_path, tiny_base):
    relabel(volumes, lambda labels: np.where(labels == 2, 0, labels), cases=range(6))
    data_set = open_data_set(volumes, "train")
    cubes = {a.case for a in data_set.annotations if a.plain_prompt == "cube"}
    assert cubes == {f"{n}.nii.gz" for n in (6, 7, 8, 9)}
    sampler = Sampler(data_set, 32, absent_prompts=["liver"], absent_rate=0.5, prompts_per_image=2)
    for position in epoch_positions(sampler, Plan(absent_rate=0.5), 1):
        drawn = sampler.draw(int(position), (1,))
        assert "cube" not in drawn.prompts or data_set.annotations[position].case in cubes
    assert wrong_prompts(data_set)[0] == "liver" and "cube" not in wrong_prompts(data_set)
    (case,) = open_data_set(volumes, "val").cases()
    assert [t.plain_prompt for t in case.truths] == ["ball"] and case.unlabelled == ("cube",)
    assert not [*absent(case)] and [q.prompt for q in plain(case)] == ["ball"]
    adapter = make_adapter(tmp_path / "a", tiny_base, threshold=1e-4)
    segmenter = Segmenter(str(adapter), device="cpu", precision="fp32")
    assert [len(part) for part in presences(segmenter, open_data_set(volumes, "val"), ["liver"])] == [1, 1]
    report = check(volumes, ("axial",), "slice")
    assert "the labels of 6 volume(s), such as 0.nii.gz, say nothing of 'cube'" in " ".join(report.remarks)
    assert not report.problems


def test_labelled_says_that_what_is_not_shown_is_absent(volumes):
    relabel(volumes, lambda labels: np.where(labels == 2, 0, labels), cases=range(6))
    describe(volumes, labelled=["cube"])
    (case,) = open_data_set(volumes, "val").cases()
    assert [q.prompt for q in absent(case)] == ["cube"]
    rows = json.loads((volumes / "dataset.json").read_text())["training"]
    describe(volumes, labelled=[], training=[rows[0] | {"labelled": ["cube"]}, *rows[1:]])
    cases = {a.case for a in open_data_set(volumes, "train").annotations if a.plain_prompt == "cube"}
    assert cases == {f"{n}.nii.gz" for n in (0, 6, 7, 8, 9)}
    describe(volumes, labelled=["cone"])
    with pytest.raises(UserError, match=r"'labelled' is no list of labels: cone"):
        open_data_set(volumes, "train")


@pytest.fixture
def train_command(monkeypatch, capsys, tiny_base):
    options = ["--base", tiny_base, "--device", "cpu", "--epochs", 1, "--samples-per-epoch", 2, "--batch-size", 1]
    return lambda *arguments: run_command(monkeypatch, capsys, train.main, *options, *arguments)


def test_values_that_nothing_names_are_told_with_their_counts(volumes, train_command, tmp_path):
    describe(volumes, labels={"background": 0, "ball": 1})
    relabel(volumes, lambda labels: np.where(ball(SHAPE, (2, 2, 2), 1), 7, labels), cases=(0, 1))
    told = "nothing names the label values 2 ({} voxels in {} label maps)"
    code, printed, errors = train_command("--data", volumes, "--check", "-o", tmp_path / "check")
    printed = " ".join(printed.split())
    assert code == 0 and "error" not in errors and "No problems" not in printed
    assert told.format(9 * 32, 9)[:-1] + "), 7 (14 voxels in 2 label maps)" in printed
    assert told.format(32, 1) in printed  # of validation
    code, printed, errors = train_command("--data", volumes, "-o", tmp_path / "out")
    assert code == 0 and "warning: " + told.format(320, 10) in printed, errors
    assert (tmp_path / "out" / "adapter.safetensors").is_file()


def empty_pictures(folder):
    for path in (folder / "masks").iterdir():
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 50), np.uint8)), path)


def unnamed_labels(folder):
    relabel(folder, lambda labels: (labels > 0) * 255)


def empty_segments(folder):
    for path in sorted((folder / "labelsTr").iterdir()):
        volume = read_volume(folder / "imagesTr" / path.name)
        name = path.name.replace(".nii.gz", ".seg.nrrd")
        write_segments(folder / "imagesTr" / name, [Segment("ball", BALL & False, (1, 0, 0))], volume)
    (folder / "dataset.json").unlink()


@pytest.mark.parametrize(
    ("layout", "empty", "message"),
    [
        ("pictures", empty_pictures, "discs has nothing labelled in its split 'train'"),
        ("volumes", unnamed_labels, "(nothing names the label values 255 ("),
        ("volumes", empty_segments, "balls has nothing labelled in its split 'train'"),
    ],
)
def test_a_set_without_any_mask_is_not_trained(request, train_command, tmp_path, layout, empty, message):
    folder = request.getfixturevalue(layout)
    empty(folder)
    code, _, errors = train_command("--data", folder, "-o", tmp_path / "out")
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "adapter.safetensors").exists()
    code, printed, errors = train_command("--data", folder, "--check", "-o", tmp_path / "check")
    assert code == 2 and "nothing is labelled; nothing can be trained" in " ".join(printed.split())


def test_validation_and_test_images_without_a_mask_stop_no_training(pictures, train_command, tmp_path):
    for number in (2, 3):
        path = pictures / "masks" / f"{number}.jpg"
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 50), np.uint8)), path)
    code, printed, errors = train_command("--data", pictures, "-o", tmp_path / "out")
    assert code == 0 and "not calibrated" in printed, errors


def test_volumes_for_validation_and_testing_may_say_nothing(volumes, train_command, tmp_path):
    rows = json.loads((volumes / "dataset.json").read_text())["training"]
    describe(volumes, training=rows[:8], validation=rows[8:9], test=rows[9:])
    relabel(volumes, lambda labels: labels * 0, cases=(8, 9))
    code, printed, errors = train_command("--data", volumes, "-o", tmp_path / "out")
    assert code == 0 and "not tested: nothing is labelled" in printed, errors


def test_a_training_without_a_finite_loss_fails(pictures, train_command, tmp_path):
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "out", "--learning-rate", 1e38)
    assert code == 2 and "the training failed in epoch 1" in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "adapter.safetensors").exists()
