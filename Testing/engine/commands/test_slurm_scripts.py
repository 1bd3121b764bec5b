"""The scripts for Slurm, run to their end on this machine; a few lines stand in for Slurm's own commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from batch import make_studies, results
from conftest import PATIENCE_SECONDS, ROOT

from engine.models.bundle import read_card

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")

# One machine: `srun` starts SLURM_NTASKS processes in a group of their own, and `scancel` ends them.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo $$ >"$SLURM_FOLDER/step"
exec setsid tasks "$@"
"""
TASKS = """#!/bin/bash
trap : TERM # it lives as long as they do
export SLURM_NODEID=0
for ((task = 1; task < SLURM_NTASKS; task++)); do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
code=$?
wait
exit $code
"""
SCANCEL = """#!/bin/bash
kill -TERM -- "-$(cat "$SLURM_FOLDER/step")"
"""


def submit(script: str, folder: Path, arguments, tasks: int = 1) -> subprocess.CompletedProcess:
    """Run a script of Resources/Cluster as `sbatch` would, in `folder`."""
    commands = folder / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("tasks", TASKS), ("scancel", SCANCEL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = {"JOB_ID": os.getpid(), "NNODES": 1, "NTASKS": tasks, "CPUS_ON_NODE": 1, "FOLDER": commands}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": str(value) for name, value in job.items()},
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    words = ["bash", ROOT / "Resources" / "Cluster" / script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(
        [*map(str, words)], env=environment, cwd=folder, timeout=PATIENCE_SECONDS, check=False, **pipes
    )


def test_a_batch_starts_ray_and_ends_it(tmp_path, tiny_adapter):
    pytest.importorskip("ray", reason="Ray is not installed, or has no wheel for this platform")
    make_studies(tmp_path / "studies", 2)
    output = tmp_path / "results"
    output.mkdir()
    job = submit("batch.sbatch", tmp_path, [tmp_path / "studies", "-p", "brain", "-a", tiny_adapter, "-o", output])
    log = next(tmp_path.glob("ray-*.log")).read_text()
    assert job.returncode == 0, job.stderr + log
    assert len(results(output)) == 2
    folder = re.search(r"/tmp/ray-\w+", log)
    assert folder and not Path(folder[0]).exists()


def test_training_joins_its_processes_and_goes_on_where_it_was_put_back(tmp_path, pictures, tiny_base, monkeypatch):
    out = tmp_path / "out"
    options = ["--data", pictures, "--base", tiny_base, "--device", "cpu", "-o", out, "--epochs"]
    job = submit("training.sbatch", tmp_path, [*options, 1], tasks=2)
    assert job.returncode == 0, job.stderr
    assert json.loads((out / "run" / "environment.json").read_text())["processes"] == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / "again").mkdir()
    job = submit("training.sbatch", tmp_path / "again", [*options, 2], tasks=2)
    assert job.returncode == 0, job.stderr
    assert read_card(out).training["epochs_run"] == 2
    assert len((out / "run" / "log.csv").read_text().splitlines()) == 3


def test_a_job_ends_with_the_code_of_its_command(tmp_path, pictures):
    job = submit("training.sbatch", tmp_path, ["--data", pictures, "--loss", "none-such", "-o", tmp_path / "out"])
    assert job.returncode == 2 and "error: " in job.stderr
