"""From labelled images to a base and to an adapter, by the commands that a user runs."""

import contextlib
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import SIDE, ball, files
from safetensors.torch import load_file
from transformers import CLIPSegForImageSegmentation

from engine import pretrain, train
from engine.bases import open_base
from engine.bundle import read_card
from engine.cli import run
from engine.errors import UserError
from engine.imaging.reading import read_volume
from engine.losses import SegmentationLoss
from engine.metrics import dice
from engine.model.clipseg import CLIPSeg
from engine.model.methods import METHODS
from engine.pretraining import Recipe, Stage, build, learning_rate, open_sources
from engine.pretraining import pretrain as pretrain_model
from engine.segmenter import Segmenter


def call(monkeypatch, capsys, command, *arguments):
    """Run a command in this process; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    code = 0
    try:
        run(command.main)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def train_command(monkeypatch, capsys, tiny_base):
    return lambda *arguments: call(monkeypatch, capsys, train, "--base", tiny_base, "--device", "cpu", *arguments)


def test_the_loss_of_a_perfect_answer_is_almost_nothing_and_of_its_opposite_large():
    masks = (torch.arange(64).view(1, 8, 8) % 8 < 3).float()
    right, wrong = (SegmentationLoss()((2 * masks - 1) * 20 * sign, masks).item() for sign in (1, -1))
    assert right < 0.01 and wrong > 10
    empty = torch.zeros(1, 8, 8)
    assert SegmentationLoss()(empty - 20, empty) < 0.01  # nothing found where nothing is


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_trained_bundled_and_segments(train_command, pictures, tmp_path, tiny_base, method):
    weights = (tiny_base / "model.safetensors").read_bytes()
    out = tmp_path / "disc"
    options = ["--method", method, "--epochs", 2, "--samples-per-epoch", 2]
    code, printed, errors = train_command("--data", pictures, "-o", out, *options, "--licence", "CC0")
    assert code == 0, errors
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == 2
    assert (tiny_base / "model.safetensors").read_bytes() == weights
    assert files(out) == {"adapter.safetensors", "card.json", "README.md"}
    card = read_card(out)
    assert (card.method, card.prompts, card.licence) == (method, ["disc"], "CC0")
    assert card.base_sha256 == open_base(str(tiny_base)).sha256
    assert card.metrics["discs, test split, plain class prompt"]["disc"]["cases"] == 1

    segmenter = Segmenter(str(out), base=str(tiny_base), device="cpu")
    segmenter.set_volume(read_volume(pictures / "images" / "0.png"))
    assert segmenter.segment("disc").probability.shape == (1, 40, 50)


def test_an_adapter_on_the_shipped_base_learns_what_the_base_does_not_know(train_command, pictures, tmp_path):
    options = ["--base", "mini", "--epochs", 15, "--absent-rate", 0, "--patience-epochs", 15]
    assert train_command("--data", pictures, "-o", tmp_path / "disc", *options)[0] == 0
    scores = []
    for adapter in (None, str(tmp_path / "disc")):
        segmenter = Segmenter(adapter, base="mini", device="cpu")
        segmenter.set_volume(read_volume(pictures / "images" / "0.png"))
        found = segmenter.segment("disc").probability[0] >= 0.5
        truth = ball((1, 40, 50), (0, 12, 15), 8)[0]
        scores.append(dice(int((found & truth).sum()), int(found.sum()), int(truth.sum())))
    assert scores[1] > 0.8 and scores[1] > scores[0] + 0.1, scores


def test_volumes_train_in_all_planes_and_are_validated_whole(train_command, volumes, tmp_path):
    out = tmp_path / "ball"
    options = ["--planes", "all", "--epochs", 2, "--samples-per-epoch", 8, "--augment", "--mirror"]
    code, printed, errors = train_command("--data", volumes, "-o", out, *options, "--prompts-per-image", 2)
    assert code == 0, errors
    assert "Dice nan" not in printed
    assert read_card(out).prompts == ["ball", "cube"]


def test_the_same_seed_gives_the_same_adapter(train_command, pictures, tmp_path):
    for name in "ab":
        assert train_command("--data", pictures, "-o", tmp_path / name, "--epochs", 2, "--augment")[0] == 0
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_adapter_that_is_there_is_not_replaced(train_command, pictures, tmp_path, tiny_adapter):
    before = {p.name: p.read_bytes() for p in tiny_adapter.iterdir()}
    code, _, errors = train_command("--data", pictures, "-o", tiny_adapter)
    assert code == 2 and "add --overwrite" in errors
    assert {p.name: p.read_bytes() for p in tiny_adapter.iterdir()} == before


def test_missing_data_is_refused_in_one_line(train_command, tmp_path):
    code, _, errors = train_command("--data", tmp_path / "nothing", "-o", tmp_path / "out")
    assert code == 2 and errors.startswith("error: ") and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recipe(pictures, volumes, tmp_path):
    """A recipe for a tiny base on both data sets; the roots of the data sets are the file's folder."""
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    values = {
        "name": "small",
        "licence": "CC0-1.0",
        "seed": 1,
        "network": {
            "vision": widths,
            "text": widths,
            "side": SIDE,
            "patch_size": 16,
            "reduce_dim": 16,
            "decoder_intermediate_size": 32,
            "extract_layers": [0, 1, 2],
            "vocabulary": 300,
        },
        "sources": [
            {"folder": pictures.name, "weight": 1, "mirror": True},
            {"folder": volumes.name, "weight": 1, "mirror": False, "planes": ["axial", "coronal"]},
        ],
        "prompts_per_image": 2,
        "absent_rate": 0.1,
        "plain_rate": 0.5,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "stages": [
            {"side": SIDE // 2, "batch_size": 4, "steps": 6, "learning_rate": 1.0e-3},
            {"side": SIDE, "batch_size": 2, "steps": 4, "learning_rate": 1.0e-3},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_a_base_is_pretrained_and_segments(recipe, tmp_path, monkeypatch, capsys, pictures):
    out = tmp_path / "small"
    arguments = ["--recipe", recipe, "--data", recipe.parent, "-o", out, "--device", "cpu"]
    code, _, errors = call(monkeypatch, capsys, pretrain, *arguments)
    assert code == 0, errors
    card = json.loads((out / "card.json").read_text())
    assert card["licence"] == "CC0-1.0" and card["data_sets"] == {"discs": ["disc"], "balls": ["ball", "cube"]}
    assert card["sha256"] == open_base(str(out)).sha256
    assert card["metrics"].keys() == {"discs, test split, plain class prompt"}
    assert CLIPSegForImageSegmentation.from_pretrained(out).config.reduce_dim == 16
    segmenter = Segmenter(base=str(out), device="cpu")
    segmenter.set_volume(read_volume(pictures / "images" / "3.png"))
    assert 0 < segmenter.segment("disc").probability.mean() < 1


def test_pretraining_that_was_stopped_goes_on_as_if_it_had_not_been(recipe, tmp_path):
    values = Recipe(**yaml.safe_load(recipe.read_text()))
    sets = open_sources(values, [recipe.parent], "train")

    def trained(checkpoint, stop_at=None, resume=False):
        network, tokenizer = build(values, sets)
        steps = []

        def on_step(step):
            steps.append((step.stage, step.number))
            if steps[-1] == stop_at:
                raise KeyboardInterrupt

        model = CLIPSeg(network, freeze=False)
        with contextlib.suppress(KeyboardInterrupt):
            pretrain_model(model, tokenizer, values, sets, checkpoint, on_step, resume, checkpoint_every=2)
        return model.state_dict(), steps

    whole, _ = trained(tmp_path / "whole.safetensors")
    trained(tmp_path / "parts.safetensors", stop_at=(1, 3))
    parts, steps = trained(tmp_path / "parts.safetensors", resume=True)
    assert steps == [(1, 3), (1, 4)]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_learning_rate_rises_then_falls_to_a_hundredth():
    stage = Stage(side=SIDE, batch_size=1, steps=1000, learning_rate=1.0)
    rates = [learning_rate(stage, number) for number in range(1, 1001)]
    assert rates[0] == pytest.approx(0.01, rel=0.01) and max(rates) > 0.97
    assert 80 < int(np.argmax(rates)) < 120
    assert rates[-1] == pytest.approx(0.01)


def test_a_data_set_that_is_missing_is_named(recipe, tmp_path):
    values = Recipe(**yaml.safe_load(recipe.read_text()))
    with pytest.raises(UserError, match="discs is in none of"):
        open_sources(values, [tmp_path / "elsewhere"], "train")
