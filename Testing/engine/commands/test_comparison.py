"""The table of all methods, trained with equal effort."""

import json

import numpy as np
import pytest
from conftest import run_command

from engine import comparison
from engine.commands import trials
from engine.models.bundle import read_card


@pytest.fixture
def compare_command(monkeypatch, capsys, tiny_base, pictures, tmp_path):
    options = ["--data", pictures, "-o", tmp_path / "out", "--base", tiny_base, "--methods", "shallow", "cris"]
    options += ["--batch-size", 2, "--device", "cpu"]
    return lambda *further: run_command(monkeypatch, capsys, comparison.main, *options, *further)


def test_methods_are_trained_once_with_equal_effort_and_put_into_a_table(compare_command, tmp_path, monkeypatch):
    code, printed, errors = compare_command("--epochs", 1)
    assert code == 0, errors
    folder = tmp_path / "out" / "discs"
    shallow, cris = (read_card(folder / method) for method in ("shallow", "cris"))
    effort = ("epochs", "batch_size", "samples_per_epoch", "seed")
    assert [shallow.training[key] for key in effort] == [cris.training[key] for key in effort] == [1, 2, None, 41]
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())["discs"]
    (measured,) = shallow.metrics["discs, test split, plain class prompt"].values()
    assert figures["shallow"]["structures"]["disc"] == measured
    assert figures["cris"]["parameters"] > figures["shallow"]["parameters"]
    table = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    rows = [line for line in table if line.startswith("| `")]
    assert [row.split("`")[1:4:2] for row in rows] == [["shallow", "tiny"], ["cris", "clip-small-resnet"]]

    monkeypatch.setattr(trials, "run_command", None)  # it would fail
    again, printed_again, errors = compare_command("--epochs", 1)
    assert again == 0, errors
    assert printed_again == printed[printed.index("## discs") :]


def test_several_seeds_reach_the_page_as_means_with_spreads(compare_command, tmp_path, monkeypatch):
    options = ["--epochs", 1, "--seeds", 41, 42, "--methods", "shallow"]
    code, printed, errors = compare_command(*options)
    assert code == 0, errors
    folder = tmp_path / "out" / "discs" / "shallow"
    cards = [read_card(folder / f"seed-{seed}") for seed in (41, 42)]
    assert [card.training["seed"] for card in cards] == [41, 42]
    dices = [card.metrics["discs, test split, plain class prompt"]["disc"]["dice"] for card in cards]
    (row,) = [line for line in printed.splitlines() if line.startswith("| `shallow`")]
    assert f"{np.mean(dices):.3f} ± {np.std(dices, ddof=1):.3f}" in row
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())["discs"]["shallow"]
    assert figures["seeds"] == [41, 42] and figures["mean"]["dice"] == pytest.approx(np.mean(dices))
    monkeypatch.setattr(trials, "run_command", None)  # it would fail
    assert compare_command(*options)[0] == 0


def test_a_training_that_fails_ends_the_comparison_by_name(compare_command):
    code, _, errors = compare_command("--epochs", 1, "--loss", "none-such")
    assert code == 2 and "engine.train ended with code 2" in errors
