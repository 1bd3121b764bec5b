"""Figures of a training on the way: what is measured, what is kept of it, and which weights."""

import csv

import pytest
import torch
from safetensors import safe_open

from engine.data import open_data_set
from engine.models.bases import open_base
from engine.nets.clipseg import CLIPSeg
from engine.training.packing import pack, read_pack
from engine.training.validation import Validator, mean_dice, means_by_set


@pytest.fixture
def validator(tiny_base, pictures, volumes, tmp_path):
    sets = []
    for folder in (pictures, volumes):
        pack(open_data_set(folder, "val"), 64, tmp_path / "packed" / folder.name, lambda done, total: None)
        sets.append(read_pack(tmp_path / "packed" / folder.name))
    base = open_base(str(tiny_base))
    model = CLIPSeg(base.load_network(), freeze=False)
    return Validator(model, base.load_tokenizer(), sets, tmp_path), model


def set_answer(model, logit: float) -> None:
    """Let the model answer everywhere the same."""
    last = model.decoder.transposed_convolution[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(logit)


def test_figures_are_kept_and_the_best_weights_stay(validator, tmp_path):
    validate, model = validator
    set_answer(model, 1.0)
    validate(10)
    best = mean_dice(validate.rows, 10)
    assert best > 0.05 and means_by_set(validate.rows, 10).keys() == {"discs", "balls"}
    set_answer(model, -1.0)
    validate(20)
    assert mean_dice(validate.rows, 20) == 0
    with safe_open(validate.best_weights, framework="pt") as file:
        assert file.metadata() == {"step": "10"}
        assert file.get_tensor("decoder.transposed_convolution.4.bias").item() == 1.0
    rows = list(csv.DictReader((tmp_path / "validation.csv").open()))
    assert {row["step"] for row in rows} == {"10", "20"}
    assert {row["structure"] for row in rows} == {"disc", "ball", "cube"}
    assert (tmp_path / "validation.png").stat().st_size > 5000


def test_a_run_that_goes_on_from_an_earlier_step_measures_the_later_ones_anew(validator, tmp_path):
    validate, model = validator
    set_answer(model, 1.0)
    for step in (10, 20):
        validate(step)
    again = Validator(model, validate._tokenizer, validate._sets, tmp_path)
    again(20)
    assert [row.step for row in again.rows] == sorted(row.step for row in again.rows)
    assert len(again.rows) == len(validate.rows)


def test_a_tower_that_changed_is_asked_anew(validator):
    validate, model = validator
    validate(10)
    first = validate._activations
    validate(20)
    assert validate._activations is first
    with torch.no_grad():
        model.vision.encoder.layers[0].mlp.fc2.bias += 1
    validate(30)
    assert not torch.equal(first["discs"][0], validate._activations["discs"][0])
