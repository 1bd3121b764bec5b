"""What a training leaves behind when it is killed, when the disk is full, and how it goes on."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import PATIENCE_SECONDS, ROOT, files, run_command, small_disk
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine import train
from engine.models.bundle import read_card

# A training that is killed by itself in the middle of writing its nth file of weights.
KILLED = """
import os, signal, sys
from pathlib import Path
from engine import train
from engine.cli import run

write, wanted, count = Path.write_bytes, int(sys.argv.pop(1)), 0  # by which weights alone are written

def half(path, content):
    global count
    count += 1
    if count == wanted:
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)

Path.write_bytes = half
run(train.main)
"""


@pytest.fixture
def train_command(monkeypatch, capsys, tiny_base):
    return lambda *arguments: run_command(
        monkeypatch, capsys, train.main, "--base", tiny_base, "--device", "cpu", *arguments
    )


def train_and_kill(tiny_base, write: int, *arguments) -> int:
    words = [sys.executable, "-c", KILLED, write, "--base", tiny_base, "--device", "cpu", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*map(str, words)], env=environment, cwd=ROOT, timeout=PATIENCE_SECONDS, capture_output=True
    ).returncode


def adapter_of(folder):
    return load_file(folder / "adapter.safetensors")


@pytest.mark.parametrize("write", [3, 4])  # the checkpoint and the adapter of the second epoch
def test_a_run_that_was_killed_while_it_wrote_goes_on_from_the_last_whole_checkpoint(
    train_command, pictures, tmp_path, tiny_base, write
):
    options = ["--data", pictures, "--epochs", 4, "--batch-size", 1, "--learning-rate", 0.01]
    assert train_command(*options, "-o", tmp_path / "whole")[0] == 0
    parts = tmp_path / "parts"
    assert train_and_kill(tiny_base, write, *options, "-o", parts) == -signal.SIGKILL
    assert read_card(parts).training["epochs_run"] == 1  # the adapter of the first epoch, whole
    assert adapter_of(parts).keys() == adapter_of(tmp_path / "whole").keys()
    code, _, errors = train_command(*options, "-o", parts, "--resume")
    assert code == 0, errors
    whole, resumed = adapter_of(tmp_path / "whole"), adapter_of(parts)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_full_disk_stops_a_run_in_one_line_and_keeps_its_checkpoint(train_command, pictures, tmp_path):
    disk, options = tmp_path / "disk", ["--data", pictures, "--batch-size", 1]
    with small_disk(disk, "4m"):
        out = disk / "out"
        assert train_command(*options, "-o", out, "--epochs", 1)[0] == 0
        before = {name: (out / name).read_bytes() for name in files(out)}
        checkpoint = (out / "run" / "checkpoint.safetensors").read_bytes()
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(8 << 20))
        code, _, errors = train_command(*options, "-o", out, "--epochs", 3, "--resume")
        assert code == 2 and "No space left" in errors and "Traceback" not in errors
        assert str(out) in errors
        assert {name: (out / name).read_bytes() for name in files(out)} == before
        assert (out / "run" / "checkpoint.safetensors").read_bytes() == checkpoint
        filler.unlink()
        code, _, errors = train_command(*options, "-o", out, "--epochs", 3, "--resume")
        assert code == 0, errors
        assert read_card(out).training["epochs_run"] == 3


def test_tensorboard_shows_every_epoch_once_also_after_a_resumed_run(train_command, pictures, tmp_path):
    out = tmp_path / "out"
    assert train_command("--data", pictures, "-o", out, "--epochs", 2)[0] == 0
    assert train_command("--data", pictures, "-o", out, "--epochs", 3, "--resume")[0] == 0
    events = EventAccumulator(str(out / "run" / "tensorboard"))
    events.Reload()
    scores = events.Scalars("Dice/validation")
    assert [event.step for event in scores] == [1, 2, 3]
    rows = (out / "run" / "log.csv").read_text().splitlines()[1:]
    assert [event.value for event in scores] == pytest.approx([float(row.split(",")[3]) for row in rows])
