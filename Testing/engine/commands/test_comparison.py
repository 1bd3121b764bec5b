"""The table of all methods, trained with equal effort."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, files, run_command

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


@pytest.fixture
def paper_command(monkeypatch, capsys, tiny_base, pictures, tmp_path):
    """The paper's table on one set of its eight, small."""
    pictures.rename(tmp_path / "root-kvasir")
    (tmp_path / "root").mkdir()
    (tmp_path / "root-kvasir").rename(tmp_path / "root" / "kvasir_polyp")
    options = [
        "--paper",
        "--data",
        tmp_path / "root",
        "-o",
        tmp_path / "table1",
        "--base",
        tiny_base,
        "--epochs",
        1,
    ]
    options += ["--batch-size", 2, "--device", "cpu"]
    return lambda *further: run_command(monkeypatch, capsys, comparison.main, *options, *further)


def test_the_papers_table_is_repeated_from_the_sets_that_are_there(paper_command, tmp_path, monkeypatch):
    options = ["--methods", "decoder", "shallow", "--seeds", 41, 42]
    code, printed, errors = paper_command(*options)
    assert code == 0, errors
    assert "no such folder: bkai_polyp, clinicdb_polyp, isic, dfu, camus, busi, chexlocalize." in printed
    assert "An estimate for one " in printed and "| kvasir_polyp | shallow VL |" in printed
    folder = tmp_path / "table1"
    assert files(folder) == {"table1.md", "table1.json", "methods.png"}
    page, results = (folder / "table1.md").read_text(), json.loads((folder / "table1.json").read_text())
    assert "**A rehearsal, not the paper's table:**" in page and "## Kvasir-SEG" in page
    assert "`shallow VL` – `decoder`" in page and str(tmp_path) not in page
    assert "| `mask_resize` | nearest | Pillow's" in page and read_card_of(folder).base_sha256[:16] in page
    row = results["kvasir_polyp"]["methods"]["shallow VL"]
    assert f"| `shallow VL` | {row['parameters']:,} | Dice |" in page
    assert row["seeds"] == [41, 42] and row["paper"]["dice"] == 86.85
    dices = [card.metrics[BY_PAPER]["disc"]["dice"] for card in map(read_card, cards_of(folder, "shallow-VL"))]
    assert row["paper_rules"]["dice"]["mean"] == pytest.approx(100 * np.mean(dices), abs=0.01)
    assert row["paper_rules"]["dice"]["deviation"] == pytest.approx(100 * np.std(dices, ddof=1), abs=0.02)
    overview = f"{row['paper_rules']['dice']['mean']:.2f} ({row['paper_rules']['dice']['mean'] - 86.85:+.2f}) |"
    assert overview in next(line for line in page.splitlines() if line.startswith("| Kvasir-SEG |"))
    (test,) = results["kvasir_polyp"]["tests"]
    assert (test["first"], test["second"], test["cases"]) == ("decoder", "shallow VL", 1)
    monkeypatch.setattr(trials, "run_command", None)  # it would fail
    code, printed, errors = paper_command(*options)
    assert code == 0, errors
    assert (folder / "table1.md").read_text() == page


BY_PAPER = "kvasir_polyp, test split, random prompts, no presence gate, masks compared on the picture, enlarged"


def cards_of(folder, method):
    return sorted((folder / "kvasir_polyp" / method).glob("seed-*"))


def read_card_of(folder):
    return read_card(cards_of(folder, "decoder")[0])


def test_a_plan_of_the_papers_table_trains_nothing(paper_command, tmp_path):
    options = ["--estimate", "--methods", "dense", "cris", "--placements", "V", "VL", "VLC"]
    code, printed, errors = paper_command(*options)
    assert code == 0, errors
    for method in ("dense V", "dense VL", "dense VLC", "cris"):
        assert f"| kvasir_polyp | {method} |" in printed
    assert "import cris_best.pth --base clip-rn50 --name cris-refcoco" in printed
    assert not (tmp_path / "table1" / "kvasir_polyp").exists()


def test_the_papers_table_without_any_set_is_refused(paper_command, tmp_path):
    code, _, errors = paper_command("--sets", "isic", "busi")
    assert code == 2 and "holds none of isic, busi; put them there in MedVLSM's layout" in errors


ON_A_CLUSTER = """
import json, sys
from pathlib import Path
from engine.cli import run
from engine.commands import trials
wanted = [trials.Trial(Path(folder), tuple(words)) for folder, words in json.loads(sys.argv[1])]
run(lambda: trials.train(wanted, "local"))
"""  # in a process of its own, as Ray keeps the rules of access with which it was first imported


def test_trainings_run_on_a_cluster_and_a_failed_one_is_named(tmp_path, pictures, tiny_base):
    words = ["--data", pictures, "--base", tiny_base, "--device", "cpu", "--batch-size", 2, "--method", "shallow"]
    wanted = [
        trials.Trial(tmp_path / name, tuple(map(str, [*words, "--epochs", epochs])))
        for name, epochs in (("good", 1), ("bad", 0))
    ]
    given = json.dumps([(str(trial.folder), trial.arguments) for trial in wanted])
    command = [sys.executable, "-c", ON_A_CLUSTER, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "engine.train ended with code 2" in done.stderr, done.stderr
    assert [trial.is_done for trial in wanted] == [True, False]
    assert "epochs is 0; give a whole number from 1 on" in done.stdout


def test_a_training_that_fails_ends_the_comparison_by_name(compare_command):
    code, _, errors = compare_command("--epochs", 1, "--loss", "none-such")
    assert code == 2 and "engine.train ended with code 2" in errors
