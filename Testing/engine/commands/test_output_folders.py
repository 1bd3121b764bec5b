"""Output folders: every command makes the one that it is given, and none where it refuses to begin."""

import os

import pytest
from conftest import run_command

from engine import adapters, benchmark, comparison, demo, evaluate, pretrain, results, segment, train
from engine.errors import UserError
from engine.files import check_folder, make_folder, means_folder
from engine.models.places import SHIPPED_MODELS

MISSING = "there-is-none"
# Each command with something wrong but the output, which it names last.
REFUSED = {
    "segment": (segment, ["SCAN", "-p", "disc", "--adapter", MISSING]),
    "train": (train, ["--data", "PICTURES", "--base", MISSING]),
    "train again": (train, ["--data", "PICTURES", "--base", "BASE", "--device", "cpu", "--resume"]),
    "check": (train, ["--data", "SCAN", "--check"]),
    "evaluate": (evaluate, ["--data", "PICTURES", "--adapter", MISSING]),
    "results": (results, ["--data", "PICTURES", "--adapters", MISSING, "--gallery", "OUTPUT"]),
    "comparison": (comparison, ["--data", "PICTURES", "--methods", "none", "--base", MISSING]),
    "pretrain": (pretrain, ["--recipe", "RECIPE", "--data", "EMPTY"]),
    "pretrain again": (pretrain, ["--recipe", "RECIPE", "--data", "EMPTY", "--resume"]),
    "demo": (demo, ["--device", "tpu"]),
    "benchmark": (benchmark, ["--all", "--quick", "--base", MISSING]),
    "import": (adapters, ["import", "SCAN", "--base", "BASE"]),
}


@pytest.fixture
def call(pictures, tiny_base, tmp_path, monkeypatch, capsys):
    """Run one of these commands with an output; return exit code and errors."""
    (tmp_path / "empty").mkdir()
    places = {
        "SCAN": pictures / "images" / "0.png",
        "PICTURES": pictures,
        "EMPTY": tmp_path / "empty",
        "BASE": tiny_base,
        "RECIPE": SHIPPED_MODELS / "mini" / "recipe.yaml",
    }

    def run(case: str, output: str) -> tuple[int, str]:
        command, words = REFUSED[case]
        words = [{**places, "OUTPUT": output}.get(word, word) for word in words]
        code, _, errors = run_command(monkeypatch, capsys, command.main, *words, "-o", output)
        return code, errors

    return run


@pytest.mark.parametrize("case", REFUSED)
def test_what_refuses_to_begin_leaves_no_folder(call, tmp_path, case):
    code, errors = call(case, f"{tmp_path}/new/deep/")
    assert code == 2 and "error: " in errors and "Traceback" not in errors
    assert not (tmp_path / "new").exists(), errors


@pytest.mark.parametrize("case", sorted(REFUSED.keys() - {"train", "results"}))  # which look for their models first
def test_a_file_in_the_way_is_said(call, tmp_path, case):
    (tmp_path / "file").write_text("precious")
    code, errors = call(case, f"{tmp_path}/file/deep/")
    assert code == 2 and f"error: {tmp_path / 'file'} is no folder; nothing can be written to" in errors
    assert (tmp_path / "file").read_text() == "precious"


def test_commands_make_their_folders(pictures, tiny_base, tmp_path, monkeypatch, capsys):
    new = tmp_path / "new"
    data, alone = ("--data", pictures), ("--base", tiny_base, "--device", "cpu")
    run_command(monkeypatch, capsys, train.main, *data, "--check", "-o", new / "check" / "1")
    run_command(monkeypatch, capsys, evaluate.main, *data, *alone, "--adapter", "none", "-o", new / "scores" / "1")
    run_command(monkeypatch, capsys, train.main, *data, *alone, "--epochs", 1, "-o", new / "adapters" / "disc")
    assert (new / "check" / "1" / "report.md").is_file()
    assert (new / "scores" / "1" / "summary.json").is_file()
    assert (new / "adapters" / "disc" / "card.json").is_file()


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("new/", True),
        (f"new.v2{os.sep}", True),
        ("new", True),
        ("..", True),
        ("o.seg.nrrd", False),
        ("new.v2", False),
    ],
)
def test_a_folder_is_known_by_its_name(output, folder):
    assert means_folder(output) is folder


def test_a_folder_that_is_there_may_have_any_name(tmp_path):
    (tmp_path / "2024.01").mkdir()
    assert means_folder(str(tmp_path / "2024.01"))


def test_a_folder_that_cannot_be_made_is_refused_before_and_after(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "link", "file/deep"):
        with pytest.raises(UserError, match="is no folder; nothing can be written"):
            check_folder(tmp_path / place)
        with pytest.raises(UserError, match="cannot be made"):
            make_folder(tmp_path / place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="closed is not writable"):
        check_folder(tmp_path / "closed" / "new" / "deep")
