"""The presence threshold: how it is chosen, on what it is measured, and where it is kept."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_adapter, run_command
from hypothesis import given
from hypothesis import strategies as st

from engine import adapters, segment, train
from engine.data import open_data_set, wordings
from engine.errors import UserError
from engine.evaluation import measuring as evaluation
from engine.evaluation.measuring import absent, presences
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.models.bundle import read_card, write_card
from engine.models.presence import Calibration, Rates, calibrate
from engine.prompts import OTHER_STRUCTURES, absent_from
from engine.segmentation.segmenter import Segmenter

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def rates(present, absent, threshold) -> tuple[float, float]:
    """Count: of the absent, those found; of the present, those not found."""
    return np.mean([p >= threshold for p in absent]), np.mean([p < threshold for p in present])


@given(SCORES, SCORES)
def test_no_other_threshold_balances_the_errors_better(present, absent):
    chosen = calibrate(present, absent)
    found = chosen.rates.false_positive_rate, chosen.rates.missed_rate
    assert found == pytest.approx(rates(present, absent, chosen.threshold))
    assert (chosen.rates.absent, chosen.rates.present) == (len(absent), len(present))
    assert 0 < chosen.threshold <= 1
    for other in np.unique([*present, *absent, *np.linspace(0.01, 1, 100)]):
        if other > 0:
            assert max(found) <= max(rates(present, absent, other)) + 1e-12


@given(SCORES, SCORES)
def test_the_order_of_the_scores_does_not_matter(present, absent):
    assert calibrate(present, absent) == calibrate(present[::-1], sorted(absent))


@given(st.lists(st.floats(0.6, 1), min_size=1), st.lists(st.floats(0, 0.5), min_size=1))
def test_between_scores_that_are_apart_the_threshold_is_in_the_middle(present, absent):
    chosen = calibrate(present, absent)
    assert chosen.threshold == pytest.approx((min(present) + max(absent)) / 2)
    assert (chosen.rates.false_positive_rate, chosen.rates.missed_rate) == (0, 0)


@pytest.mark.parametrize(
    ("present", "absent", "threshold", "false_positive_rate", "missed_rate"),
    [
        ([0.9, 0.8], [0.2, 0.1], 0.5, 0, 0),
        ([0.9, 0.2, 0.8, 0.7], [0.1, 0.1, 0.5, 0.1], 0.6, 0, 0.25),  # as good as 0.15, and the other way round
        ([0.9], [0.9], 0.45, 1, 0),  # nothing tells them apart
        ([0.8, 0.6, 0.3], [0.0, 0.0, 0.0], 0.15, 0, 0),  # without a mask the score is 0
        ([1.0, 0.4], [0.4, 0.2], 0.7, 0, 0.5),
    ],
)
def test_thresholds_that_can_be_found_by_hand(present, absent, threshold, false_positive_rate, missed_rate):
    expected = Rates(false_positive_rate, missed_rate, len(absent), len(present))
    assert calibrate(present, absent) == Calibration(pytest.approx(threshold), expected)


def test_one_kind_alone_gives_no_threshold():
    assert calibrate([0.5], []) is None and calibrate([], [0.5]) is None


def test_rates_are_said_in_words():
    said = "4.0% of 100 absent prompts return a mask, 12.5% of 8 present ones are missed"
    assert str(Rates(0.04, 0.125, 100, 8)) == said


@pytest.fixture
def with_normals(pictures):
    """The pictures of discs; in the split for validation is also one without, whose prompt says so."""
    picture = np.random.default_rng(9).integers(0, 60, (40, 50, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), pictures / "images" / "normal.png")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 50), np.uint8)), pictures / "masks" / "normal.png")
    path = pictures / "anns" / "val.json"
    row = {"img_name": "normal.png", "mask_name": "normal.png", "prompts": {"p1": "No disc"}}
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))
    return pictures


def test_what_the_labels_call_absent_is_asked_for_and_not_its_denial(with_normals, volumes):
    asked = {case.name: [q.prompt for q in absent(case)] for case in open_data_set(with_normals, "val").cases()}
    assert asked == {"2.png": [], "normal.png": ["disc"]}
    labels = next((volumes / "labelsTr").glob("5.nii.gz"))
    image = sitk.ReadImage(labels)
    without_cube = sitk.GetImageFromArray(
        np.where(sitk.GetArrayFromImage(image) == 2, 0, sitk.GetArrayFromImage(image))
    )
    without_cube.CopyInformation(image)
    sitk.WriteImage(without_cube, labels)
    description = json.loads((volumes / "dataset.json").read_text()) | {"labelled": ["cube"]}
    (volumes / "dataset.json").write_text(json.dumps(description))
    (case,) = open_data_set(volumes, "val").cases()
    assert [(q.prompt, q.structure, q.mask.any()) for q in absent(case)] == [("cube", "cube", False)]


def test_presence_is_that_of_whole_pictures_whatever_the_threshold_was(with_normals, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "a", tiny_base, threshold=1e-4, presence_threshold=1.0)
    segmenter = Segmenter(str(adapter), device="cpu", precision="fp32")
    data_set, steps = open_data_set(with_normals, "val"), []
    present, missing = presences(segmenter, data_set, ["liver"], lambda *step: steps.append(step))
    expected = {}
    for case in data_set.cases():
        segmenter.set_volume(case.volume)
        expected[case.name] = {prompt: segmenter.segment(prompt).presence for prompt in ("disc", "liver")}
    assert present == [expected["2.png"]["disc"]]
    assert sorted(missing) == sorted([expected["2.png"]["liver"], expected["normal.png"]["disc"]])
    assert steps == [(1, 2), (2, 2)]


def test_an_answer_without_a_voxel_has_no_presence(with_normals, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "a", tiny_base, threshold=0.9999)
    segmenter = Segmenter(str(adapter), device="cpu", precision="fp32")
    assert presences(segmenter, open_data_set(with_normals, "val"), ["liver"]) == ([0.0], [0.0, 0.0])


def test_of_many_cases_some_are_taken_that_are_spread_evenly(volumes, tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(evaluation, "LARGEST_CALIBRATION", 4)
    adapter = make_adapter(tmp_path / "a", tiny_base, threshold=1e-4)
    data_set, steps = open_data_set(volumes, "train"), []
    read = []
    data_set.case = lambda name, case=data_set.case: read.append(name) or case(name)
    segmenter = Segmenter(str(adapter), device="cpu")
    present, missing = presences(segmenter, data_set, ["liver"], lambda *step: steps.append(step))
    assert read == list(data_set.paths)[::3] and len(read) == 3 == len(steps)
    assert (len(present), len(missing)) == (6, 3)


def test_training_puts_the_threshold_and_both_rates_on_the_card(
    with_normals, tmp_path, tiny_base, monkeypatch, capsys
):
    out = tmp_path / "disc"
    options = ["--data", with_normals, "-o", out, "--base", tiny_base, "--device", "cpu", "--epochs", 1]
    code, printed, errors = run_command(monkeypatch, capsys, train.main, *options)
    assert code == 0, errors
    card = read_card(out)
    assert card.presence.keys() == {"discs, validation split", "discs, test split"}
    rates = Rates(**card.presence["discs, validation split"])
    assert (rates.present, rates.absent) == (1, 2)
    line = f"presence threshold {card.presence_threshold:.3g}: {rates}"
    assert line in printed and str(rates) in (out / "README.md").read_text()

    segmenter = Segmenter(str(out), str(tiny_base), device="cpu")
    others = absent_from(wordings(open_data_set(with_normals, "train")), OTHER_STRUCTURES)
    again = calibrate(*presences(segmenter, open_data_set(with_normals, "val"), others))
    assert again == Calibration(card.presence_threshold, rates)


def test_training_without_validation_leaves_the_threshold(pictures, tmp_path, tiny_base, monkeypatch, capsys):
    (pictures / "anns" / "val.json").write_text("[]")
    options = ["--data", pictures, "-o", tmp_path / "disc", "--base", tiny_base, "--device", "cpu", "--epochs", 1]
    code, printed, errors = run_command(monkeypatch, capsys, train.main, *options)
    assert code == 0, errors
    card = read_card(tmp_path / "disc")
    assert card.presence_threshold == 0.5 and card.presence.keys() == {"discs, test split"}
    assert "not calibrated" in printed


@pytest.fixture
def calibrate_command(monkeypatch, capsys):
    return lambda *arguments: run_command(
        monkeypatch, capsys, adapters.main, "calibrate", *arguments, "--device", "cpu"
    )


def test_an_adapter_is_calibrated_anew_and_its_weights_stay(calibrate_command, with_normals, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "a", tiny_base, threshold=1e-4, presence_threshold=1.0, data_set="discs")
    weights, before = (adapter / "adapter.safetensors").read_bytes(), read_card(adapter)
    write_card(
        adapter, replace(before, metrics={"elsewhere": {}}, presence={"elsewhere": asdict(Rates(0, 0, 1, 1))})
    )
    code, printed, errors = calibrate_command(adapter, "--data", with_normals)
    assert code == 0, errors
    card = read_card(adapter)
    segmenter = Segmenter(str(adapter), device="cpu")  # the bundle is whole
    assert (adapter / "adapter.safetensors").read_bytes() == weights
    changed = {name for name, value in asdict(card).items() if asdict(before)[name] != value}
    assert changed == {"presence_threshold", "presence", "metrics"}
    assert 0 < card.presence_threshold < 1 and segmenter.presence_threshold == card.presence_threshold
    assert card.presence.keys() == {"discs, validation split", "discs, test split"}  # others had another threshold
    assert card.metrics.keys() == {"elsewhere", "discs, test split, plain class prompt"}
    assert f"presence threshold {card.presence_threshold:.3g}: " in printed


def test_an_adapter_that_cannot_be_calibrated_stays_as_it_was(calibrate_command, with_normals, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    before = (adapter / "card.json").read_bytes()
    path = with_normals / "anns" / "val.json"
    for rows, message in (
        ([], "has nothing in its split 'val'"),
        (json.loads(path.read_text())[1:], "nothing that"),
    ):
        path.write_text(json.dumps(rows))
        code, _, errors = calibrate_command(adapter, "--data", with_normals)
        assert code == 2 and message in errors and (adapter / "card.json").read_bytes() == before


def test_a_card_without_presence_figures_loads(tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    values = json.loads((adapter / "card.json").read_text())
    del values["presence"]
    (adapter / "card.json").write_text(json.dumps(values))
    assert read_card(adapter).presence == {}
    assert "not calibrated" in (adapter / "README.md").read_text()


def test_a_base_alone_has_a_threshold_of_its_own(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    assert Segmenter(base=str(folder), device="cpu").presence_threshold == 0.5
    card = {"sha256": open_base(str(folder)).sha256, "presence_threshold": 0.25}
    (folder / "card.json").write_text(json.dumps(card))
    segmenter = Segmenter(base=str(folder), device="cpu")
    segmenter.set_volume(Volume(np.random.default_rng(0).integers(0, 255, (1, 40, 50)).astype(np.uint8)))
    assert segmenter.segment("brain").presence_threshold == 0.25
    adapter = make_adapter(tmp_path / "a", folder, presence_threshold=0.75)
    assert Segmenter(str(adapter), device="cpu").presence_threshold == 0.75
    for wrong in ("high", 1.5, True, None, float("nan")):
        (folder / "card.json").write_text(json.dumps(card | {"presence_threshold": wrong}))
        with pytest.raises(UserError, match="presence_threshold that is no probability"):
            open_base(str(folder))


def test_a_study_is_done_anew_once_its_adapter_was_calibrated(pictures, tmp_path, tiny_base, monkeypatch, capsys):
    adapter, scan = make_adapter(tmp_path / "a", tiny_base), pictures / "images" / "0.png"
    out = tmp_path / "out.seg.nrrd"
    options = [scan, "-p", "brain", "-a", adapter, "-o", out, "--report", "--resume", "--device", "cpu"]

    def run():
        code, printed, errors = run_command(monkeypatch, capsys, segment.main, *options, "--overwrite")
        assert code == 0, errors
        return printed, json.loads((tmp_path / "out.json").read_text())["results"][0]["found"]

    assert run()[1] is True
    assert "done before" in run()[0]
    write_card(adapter, replace(read_card(adapter), presence_threshold=1.0))
    printed, found = run()
    assert found is False and "not found" in printed
