"""Several servers behind one address: every session finds its volumes, jobs and results again."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import yaml
from conftest import PATIENCE_SECONDS, ROOT
from sending import sent_whole

from engine.client import Client
from engine.errors import UserError
from engine.server.replicas import Replicas, build

pytest.importorskip("ray.serve", reason="Ray Serve is not installed, or has no wheel for this platform")

VOXELS = np.random.default_rng(0).normal(100, 20, (3, 24, 24)).astype(np.float32)
PROMPTS = ("bright ball", "left lung")
MOST_SESSIONS = 30  # all at one of two servers by chance: once in 500 million times
TOKEN = "one-of-the-department"


@contextmanager
def department(models):
    """Two servers of tiny models in a process of its own; yields their address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["engine.department", "--replicas", 2, "--port", port, "--device", "cpu", "--volumes", MOST_SESSIONS]
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, "VLSM_MODELS": str(models), "VLSM_TOKEN": TOKEN, "PYTHONPATH": python_path()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        greeting = next((line for line in process.stdout if line.startswith("{")), None)
        assert greeting, process.communicate()
        yield json.loads(greeting)["url"]
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert not psutil.wait_procs(family, timeout=PATIENCE_SECONDS)[1]


def python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.mark.skipif(sys.platform == "win32", reason="Ray Serve is for Linux and macOS")
def test_each_session_keeps_finding_its_volume_while_both_servers_work(served_models):
    with department(served_models) as url:
        sessions = []
        while len(sessions) < MOST_SESSIONS:
            client = Client(url, TOKEN)
            sessions.append((client, client.put_volume(VOXELS + len(sessions))))
            held = {client.health()["held"]["volumes"] for client, _ in sessions}
            if len(sessions) >= 4 and len(held) > 1:
                break
        counts = [client.health()["held"]["volumes"] for client, _ in sessions]
        assert len(set(counts)) <= 2 and sum(set(counts)) >= len(sessions) > max(counts), counts
        for number, prompt in enumerate(PROMPTS):
            for client, volume in sessions:
                there = client._json("GET", f"/volumes/{volume.id}")["bytes"]
                assert (there > VOXELS.nbytes) == (number > 0)  # with what was encoded of it for the first prompt
                (result,) = client.segment(volume, [prompt], base="tiny")
                assert result.probability.shape == volume.shape
        with pytest.raises(UserError, match="token"):
            Client(url, "another-token-of-some-length")
        for token, status in (("another-token-of-some-length", 401), (TOKEN, 413)):
            assert sent_whole(url, token, "POST", "/jobs")[0] == status


def test_the_deployment_file_is_valid_and_builds(monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    file = ROOT / "Resources" / "Cluster" / "serve.yaml"
    (application,) = ServeDeploySchema(**yaml.safe_load(file.read_text("utf-8"))).applications
    assert application.import_path == "engine.server.replicas:build"
    assert Replicas(**application.args).replicas >= 2
    monkeypatch.delenv("VLSM_TOKEN", raising=False)
    with pytest.raises(UserError, match="set VLSM_TOKEN"):
        build(application.args)
    monkeypatch.setenv("VLSM_TOKEN", TOKEN)
    assert build(application.args)
    with pytest.raises(UserError, match="not valid"):
        build({"replicants": 2})
