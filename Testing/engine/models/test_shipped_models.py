"""The models in Resources/Models: small, whole, described, and good for what they are shipped for."""

import json

import pytest
from conftest import SHIPPED_ADAPTERS, run_command

from engine import demo
from engine.commands import demo as work
from engine.models.bases import open_base
from engine.models.bundle import adapter_names, check_base, find_adapter, read_card
from engine.models.places import SHIPPED_MODELS
from engine.nets.adapter import BaseShape
from engine.segmentation.request import Outputs
from engine.segmentation.segmenter import Segmenter

LARGEST_BASE_BYTES = 32e6


def test_the_embedded_base_is_small_and_described():
    folder = SHIPPED_MODELS / "mini"
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_BASE_BYTES
    base = open_base("mini")  # checks the weights against the card
    card = json.loads((folder / "card.json").read_text())
    assert base.sha256 == card["sha256"]
    assert card["licence"] == "CC-BY-NC-SA-4.0" and "Research only" in card["intended_use"]
    assert card["data_sets"] and card["metrics"]
    assert (folder / "README.md").is_file() and (folder / "recipe.yaml").is_file()


@pytest.mark.parametrize("name", SHIPPED_ADAPTERS)
def test_a_shipped_adapter_loads_and_its_card_says_where_it_is_from(name):
    card = read_card(find_adapter(name))
    assert check_base(card, open_base("mini")) is None
    assert card.licence and card.data_set and card.prompts and card.training
    assert Segmenter(name, device="cpu").card == card


def test_the_adapters_are_listed_and_fit_the_base():
    assert set(SHIPPED_ADAPTERS) <= set(adapter_names()) and "head-t1" in SHIPPED_ADAPTERS
    assert BaseShape.of(open_base("mini").load_network().config).extract_layers == (3, 6, 9)


def test_the_demo_segments_a_head_that_no_model_was_trained_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nilearn", reason="the demo's scan is in nilearn's wheel")
    arguments = ["-o", tmp_path / "demo", "--device", "cpu"]
    code, printed, errors = run_command(monkeypatch, capsys, demo.main, *arguments)
    assert code == 0, errors
    report = json.loads((tmp_path / "demo" / "head.json").read_text())
    found = {row["prompt"]: row["found"] for row in report["results"]}
    assert found == {prompt: prompt != "polyp" for prompt in work.PROMPTS}
    volumes_ml = {row["prompt"]: row["volume_ml"] for row in report["results"]}
    assert 1000 < volumes_ml["brain"] < 2300
    outputs = Outputs(tmp_path / "demo" / "head.seg.nrrd", masks=tmp_path / "demo" / "head.nii.gz")
    assert work.published_dice(outputs, "brain") > 0.9
    for name in ("head.seg.nrrd", "head.png", "head_brain.nii.gz", "mni152.nii.gz"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    assert "polyp" in printed and "in a browser: " in printed
