"""Many studies with faulty ones among them, killed in the middle; `Testing/batch.py` takes more of them."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from batch import FAULTS, command, kill_after, make_studies, results, summary
from conftest import PATIENCE_SECONDS, ROOT, run_command, wait_until

from engine import segment
from engine.errors import UserError
from engine.segmentation.batch import Order, Settings, Study
from engine.segmentation.request import Outputs, Request
from engine.segmentation.worker import segment_one_by_one

COUNT = 48
SLOW_SLICES = 2000


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_good_studies_are_done_faulty_ones_listed_and_a_killed_run_goes_on_to_the_same_end(
    tmp_path, tiny_adapter, monkeypatch, capsys
):
    faulty = make_studies(tmp_path / "studies", COUNT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()

    def run(output):
        words = command(tmp_path / "studies", tiny_adapter, output)[3:]
        return run_command(monkeypatch, capsys, segment.main, *words)

    code, _, errors = run(whole)
    assert code == 2 and f"{len(faulty)} of {COUNT} studies failed" in errors and "Traceback" not in errors
    kill_after(command(tmp_path / "studies", tiny_adapter, killed), COUNT // 3)
    assert not (killed / "summary.csv").exists()
    code, printed, _ = run(killed)
    assert code == 2 and printed.count("done before") >= COUNT // 3
    assert results(killed) == results(whole) and len(results(whole)) == COUNT - len(faulty)
    assert summary(killed) == summary(whole)
    reasons = {row["study"]: row["reason"] for row in summary(whole) if row["state"] == "failed"}
    assert reasons.keys() == faulty.keys() and set(faulty.values()) == FAULTS.keys()
    for name, reason in reasons.items():
        assert re.search(FAULTS[faulty[name]], reason) and "unexpected" not in reason, (faulty[name], reason)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_process_that_dies_takes_no_other_study_with_it(tmp_path, tiny_adapter):
    """As where memory runs out, or where a library does not bear a file."""
    studies, output = tmp_path / "studies", tmp_path / "out"
    studies.mkdir(), output.mkdir()
    for name, slices in (("a", 2), ("b slow", SLOW_SLICES), ("c", 2), ("d", 2)):
        voxels = np.random.default_rng(slices).normal(100, 10, (slices, 20, 20)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), studies / f"{name}.nrrd")
    process = start(command(studies, tiny_adapter, output))
    worker = wait_for_worker(process, lambda: "outputs_sha256" in read(output / "a.json"))
    worker.kill()
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "1 of 4 studies failed" in errors and "Traceback" not in errors, errors
    rows = {row["study"]: row for row in summary(output)}
    assert [name for name, row in rows.items() if row["state"] == "done"] == ["a", "c", "d"]
    assert re.search(r"b slow\.nrrd ended the process that worked on it \(SIGKILL\)", rows["b slow"]["reason"])
    assert len(results(output)) == 3

    assert subprocess.run(command(studies, tiny_adapter, output), cwd=ROOT, env=environment()).returncode == 0
    assert len(results(output)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_the_process_that_works_and_leaves_no_half_file(tmp_path, tiny_adapter):
    studies, output = tmp_path / "studies", tmp_path / "out"
    make_studies(studies, COUNT), output.mkdir()
    process = start(command(studies, tiny_adapter, output))
    worker = wait_for_worker(process, lambda: "outputs_sha256" in read(output / "study-001.json"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and errors.endswith("stopped\n") and "Traceback" not in errors, errors
    assert not psutil.wait_procs([worker], timeout=PATIENCE_SECONDS)[1]
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]


def test_an_adapter_that_is_not_there_is_said_once(tmp_path):
    study = Study("a", tmp_path / "a.nrrd", Outputs(tmp_path / "a.seg.nrrd"))
    with pytest.raises(UserError, match="nowhere"):
        next(segment_one_by_one(Settings(adapter="nowhere"), [study], Order(Request(("brain",)))))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start(words) -> subprocess.Popen:
    return subprocess.Popen(
        words, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for_worker(process, condition) -> psutil.Process:
    """Return the process that works for another, once a condition holds."""

    def reached() -> bool:
        there = condition()
        assert there or process.poll() is None, process.communicate()
        return there

    wait_until(reached)
    children = psutil.Process(process.pid).children()
    return next(child for child in children if any("spawn_main" in word for word in child.cmdline()))


def read(path) -> str:
    return path.read_text() if path.exists() else ""
