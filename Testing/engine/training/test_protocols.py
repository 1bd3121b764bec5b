"""The paper's protocol beside the product's own: what differs, that either side can be had, and that it is said."""

import csv
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command
from PIL import Image

from engine import train
from engine.choices import METHODS
from engine.data import open_data_set
from engine.models.bundle import read_card
from engine.tables import markdown_table
from engine.training.losses import ReferenceLoss, SegmentationLoss
from engine.training.plan import Plan
from engine.training.protocols import BASE, DIFFERENCES, base_of, of_method, settings
from engine.training.samples import Sampler

PAGE = ROOT / "Resources" / "Documentation" / "paper-protocol.md"
PRODUCT = {  # what every training had before there were protocols
    "learning_rate": None,
    "variant": "original",
    "start": None,
    "loss": "logits",
    "dice_smoothing": 1.0,
    "precision": "auto",
    "mask_resize": "bilinear",
    "mask_above": 127,
    "absent_rate": 0.1,
    "minimum_epochs": 0,
    "minimum_gain": 0.0,
    "validation_prompts": "plain",
    "largest_validation": 256,
    "test_prompts": "plain",
    "presence_gate": True,
    "metric_grid": "picture",
}


def test_the_product_keeps_its_own_settings():
    plan = Plan()
    assert {name: getattr(plan, name) for name in PRODUCT} == PRODUCT
    assert Plan(**settings("product", "dense")) == plan and base_of("product", "san") == "mini"
    rates = {method: Plan(method=method).resolved().learning_rate for method in METHODS}
    assert (rates["san"], rates["decoder"], rates["full"], rates["cris"]) == (2e-3, 3e-4, 1e-4, 1e-4)


def test_every_difference_is_a_field_that_really_differs():
    assert {difference.field for difference in DIFFERENCES} == {BASE, *PRODUCT}
    assert {difference.field for difference in DIFFERENCES} - {BASE} <= {field.name for field in fields(Plan)}
    for difference in DIFFERENCES:
        ours = [
            base_of("product", m)
            if difference.field == BASE
            else getattr(Plan(method=m).resolved(), difference.field)
            for m in METHODS
        ]
        theirs = [of_method(difference, method) for method in METHODS]
        assert any(value not in (None, own) for value, own in zip(theirs, ours, strict=True)), difference.field
        assert len(difference.reason) > 40


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_plan_is_valid_for_every_method(method):
    plan = Plan(method=method, **settings("paper", method)).resolved()
    assert (plan.protocol, plan.loss, plan.precision, plan.absent_rate) == ("paper", "reference", "fp16", 0)
    assert plan.variant == ("released" if method in ("san", "cris") else "original")
    assert base_of("paper", method) == {"san": "clip-vit-b-16", "cris": "clip-rn50"}.get(method, "clipseg")


def test_the_page_lists_every_difference():
    rows = [[f"`{d.field}`", _text(d.value), str(_default(d.field)), d.reason] for d in DIFFERENCES]
    table = markdown_table(
        ("setting", "the paper's code", "ours", "where theirs comes from, and why ours differs"), rows
    )
    assert table in PAGE.read_text(encoding="utf-8"), f"this table is not in {PAGE.name}:\n{table}"


def _default(field: str) -> object:
    if field == BASE:
        return "mini"
    value = getattr(Plan(), field)
    return "by method" if field == "learning_rate" else "none" if value is None else value


def _text(value: object) -> str:
    if isinstance(value, dict):
        kept = {method: own for method, own in value.items() if own != "clipseg"}
        return ", ".join(
            [*(f"{method} {own}" for method, own in kept.items()), *(["else clipseg"] * (kept != value))]
        )
    return str(value)


@pytest.fixture
def train_command(monkeypatch, capsys, tiny_base, pictures):
    options = ["--data", pictures, "--base", tiny_base, "--device", "cpu"]
    return lambda *further: run_command(monkeypatch, capsys, train.main, *options, *further)


def test_a_training_by_the_protocol_says_so_and_is_measured_by_both_rules(train_command, tmp_path):
    out = tmp_path / "disc"
    options = ["--protocol", "paper", "--precision", "fp32", "--dice-smoothing", 0.5, "--epochs", 1]
    code, printed, errors = train_command("-o", out, *options)
    assert code == 0, errors
    card = read_card(out)
    assert card.training["protocol"] == "paper" and card.training["loss"] == "reference"
    assert (card.training["precision"], card.training["dice_smoothing"]) == ("fp32", 0.5)  # flags go before it
    assert card.training["protocol_reasons"].keys() >= {"learning_rate", "mask_resize", "metric_grid"}
    readme = (out / "README.md").read_text()
    assert "protocol `paper`" in readme and "- mask_resize nearest: Pillow" in readme
    assert [name.split(", ", 2)[2] for name in card.metrics] == [
        "plain class prompt",
        "random prompts, no presence gate, masks compared on the picture, enlarged",
    ]
    assert "test with random prompts" in printed
    for name, kind in (("scores.csv", "plain"), ("scores-by-protocol.csv", "random")):
        with (out / "run" / name).open() as file:
            assert [row["kind"] for row in csv.DictReader(file)] == [kind]


def test_training_in_half_precision_on_a_cpu_is_a_clear_error(train_command, tmp_path):
    code, _, errors = train_command("-o", tmp_path / "disc", "--protocol", "paper")
    assert code == 2 and "fp16 needs a GPU; add --precision auto" in errors


def test_training_stops_when_nothing_is_gained_but_not_too_early(train_command, tmp_path):
    options = ["--minimum-gain", 0.99, "--patience-epochs", 2, "--minimum-epochs", 4, "--epochs", 9]
    code, _, errors = train_command("-o", tmp_path / "disc", *options)
    assert code == 0, errors
    assert len((tmp_path / "disc" / "run" / "log.csv").read_text().splitlines()) - 1 == 4


def test_training_starts_with_the_weights_of_an_adapter(train_command, tmp_path):
    assert train_command("-o", tmp_path / "first", "--epochs", 1)[0] == 0
    still = ["--learning-rate", 1e-30, "--weight-decay", 0, "--epochs", 1, "--start", tmp_path / "first"]
    code, _, errors = train_command("-o", tmp_path / "second", *still)
    assert code == 0, errors
    first, second = (read_card(tmp_path / name).sha256 for name in ("first", "second"))
    assert first == second
    code, _, errors = train_command("-o", tmp_path / "third", "--method", "shallow", "--start", tmp_path / "first")
    assert code == 2 and "cannot start from the adapter 'first'" in errors


def test_the_nearest_resize_is_pillows(pictures):
    data_set = open_data_set(pictures, "train")
    mask = data_set.mask(data_set.annotations[0])
    for side in (16, 64):
        expected = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST))
        sample = Sampler(data_set, side, mask_resize="nearest").draw(0, (0,))
        assert np.array_equal(sample.masks[0].numpy(), expected)


def test_smoothing_gives_empty_masks_a_gradient():
    for kind in (SegmentationLoss, ReferenceLoss):
        gradients = []
        for smoothing in (1.0, 1e-5):
            logits = torch.full((1, 8, 8), -4.0, requires_grad=True)
            kind(1, 0, smoothing)(logits, torch.zeros(1, 8, 8)).backward()
            gradients.append(logits.grad.abs().max().item())
        assert gradients[0] > 1000 * gradients[1]


def test_overlaps_are_kept_where_that_is_asked_for_and_the_card_says_so(train_command, pictures, tmp_path):
    (pictures / "images" / "3.png").write_bytes((pictures / "images" / "0.png").read_bytes())
    code, printed, errors = train_command("-o", tmp_path / "disc", "--keep-overlap", "--epochs", 1)
    assert code == 0, errors
    assert "warning: 1 image(s) of the split 'test' are also in others" in printed
    assert read_card(tmp_path / "disc").training["shared_images"] == {"test": 1}


def test_a_subset_is_spread_evenly_over_each_split(train_command, pictures, tmp_path):
    rows = json.loads((pictures / "anns" / "train.json").read_text())
    code, printed, errors = train_command("-o", tmp_path / "disc", "--subset", 1, "--epochs", 1)
    assert code == 0, errors
    assert len(rows) == 2 and "annotations: 1 for training, 1 for validation" in printed
