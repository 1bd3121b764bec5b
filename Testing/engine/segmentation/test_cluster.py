"""A batch on a Ray cluster: the same results as on one machine, also when a worker is killed in the middle."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from batch import command, make_studies, results, summary
from conftest import PATIENCE_SECONDS, ROOT, run_command, wait_until

from engine import segment
from engine.errors import UserError
from engine.segmentation.cluster import MOST_ATTEMPTS, connected, shares

COUNT = 16
ray = pytest.importorskip("ray", reason="Ray is not installed, or has no wheel for this platform")


@pytest.mark.parametrize(
    ("machines", "workers", "device", "wanted"),
    [
        ([{"CPU": 8}], None, "auto", (1, {"num_cpus": 8})),
        ([{"CPU": 2}], 2, "cpu", (2, {"num_cpus": 1})),
        ([{"CPU": 5}, {"CPU": 5}], 3, "cpu", (3, {"num_cpus": 2})),  # with 3 each, the third would find no place
        ([{"CPU": 16, "GPU": 2}, {"CPU": 4}], None, "auto", (2, {"num_gpus": 1, "num_cpus": 8})),
        ([{"CPU": 16, "GPU": 2}], 1, "cuda", (1, {"num_gpus": 1, "num_cpus": 8})),
        ([{"CPU": 16, "GPU": 2}], 4, "auto", (4, {"num_gpus": 0.5, "num_cpus": 4})),
        ([{"CPU": 16, "GPU": 2}], 5, "auto", (5, {"num_gpus": 1 / 3, "num_cpus": 2})),
        ([{"CPU": 16, "GPU": 2}], 4, "cpu", (4, {"num_cpus": 4})),
    ],
)
def test_every_worker_finds_a_place(machines, workers, device, wanted):
    assert shares(machines, workers, device) == wanted


@pytest.mark.parametrize(
    ("machines", "workers", "device", "problem"),
    [
        ([{"CPU": 8}], None, "cuda", "no machine of the cluster has a GPU"),
        ([{"CPU": 8, "GPU": 2}], 9, "auto", "choose --workers 8"),
        ([{"CPU": 2}, {"CPU": 2}], 5, "cpu", "choose --workers 4 or fewer"),
    ],
)
def test_more_than_there_is_is_refused(machines, workers, device, problem):
    with pytest.raises(UserError, match=problem):
        shares(machines, workers, device)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cluster", "local", "-o", "one.seg.nrrd"], "into an output folder; end one.seg.nrrd with /"),
        (["--workers", 2, "-o", "one.seg.nrrd"], "--workers are those of a cluster"),
    ],
)
def test_a_cluster_takes_folders(words, problem, monkeypatch, capsys):
    code, _, errors = run_command(monkeypatch, capsys, segment.main, ROOT / "README.md", "-p", "brain", *words)
    assert code == 2 and problem in errors


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_answers_is_said_at_once(address):
    with pytest.raises(UserError, match="no Ray cluster answers"), connected(address):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_after_ctrl_c_and_a_killed_worker_all_is_there_and_nothing_was_done_twice(
    tmp_path, tiny_adapter, monkeypatch, capsys
):
    faulty = make_studies(tmp_path / "studies", COUNT)
    for name in ("study-000", "study-006"):
        make_slow(tmp_path / "studies" / f"{name}.nrrd")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir(), shared.mkdir()
    words = command(tmp_path / "studies", tiny_adapter, alone)[3:]
    assert run_command(monkeypatch, capsys, segment.main, *words)[0] == 2

    process = start(command(tmp_path / "studies", tiny_adapter, shared))
    wait_for(lambda: len(done(shared)) >= 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and errors.endswith("stopped\n") and "Traceback" not in errors, errors
    assert not psutil.wait_procs(family, timeout=PATIENCE_SECONDS)[1] and not (shared / "summary.csv").exists()
    at_first = done(shared)

    process = start(command(tmp_path / "studies", tiny_adapter, shared))
    wait_for(lambda: len(done(shared)) >= len(at_first) + 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    wait_for(lambda: any(is_at_work(worker) and not worker.kill() for worker in family), process)
    before = done(shared)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and f"{len(faulty)} of {COUNT} studies failed" in errors, errors
    assert not psutil.wait_procs(family, timeout=PATIENCE_SECONDS)[1]

    assert results(shared) == results(alone) and len(results(shared)) == COUNT - len(faulty)
    assert summary(shared) == summary(alone)
    assert at_first.items() <= before.items() <= done(shared).items()  # written once


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_study_that_ends_every_worker_has_failed_and_the_others_are_done(tmp_path, tiny_adapter):
    output = tmp_path / "out"
    assert not make_studies(tmp_path / "studies", 3)
    make_slow(tmp_path / "studies" / "study-000.nrrd", slices=4000)
    output.mkdir()
    process = start(command(tmp_path / "studies", tiny_adapter, output))
    wait_for(lambda: len(done(output)) == 2, process)
    for _ in range(MOST_ATTEMPTS):
        ended = []
        wait_for(lambda ended=ended: ended.extend(end_workers(process.pid)) or ended, process)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "1 of 3 studies failed" in errors and "Traceback" not in errors, errors
    assert [row["state"] for row in summary(output)] == ["failed", "done", "done"]
    assert f"ended {MOST_ATTEMPTS} workers" in summary(output)[0]["reason"]


def end_workers(pid) -> list[psutil.Process]:
    """Kill the workers of a command that have a study in their hands, and wait for their end."""
    workers = [process for process in psutil.Process(pid).children(recursive=True) if is_at_work(process)]
    for worker in workers:
        worker.kill()
    return psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)[0]


def make_slow(path, slices=400) -> None:
    """Give a study so many slices that its worker is at it for a while."""
    voxels = np.random.default_rng(0).normal(100, 10, (slices, 60, 60)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)


def start(words) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [*words, "--cluster", "local", "--workers", "2"]
    return subprocess.Popen(
        words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process) -> None:
    """Wait for a state that a process reaches while it runs."""

    def reached() -> bool:
        there = condition()
        assert there or process.poll() is None, process.communicate()
        return there

    wait_until(reached)


def done(folder) -> dict[str, int]:
    """Return the whole reports, which are written last, with the times of their writing."""
    whole = (path for path in folder.glob("[!.]*.json") if "outputs_sha256" in path.read_text())
    return {path.name: path.stat().st_mtime_ns for path in whole}


def is_at_work(process: psutil.Process) -> bool:
    """Return whether a process is one of Ray's workers with a study in its hands."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()[0] == "ray::Worker.segment"
    return False
