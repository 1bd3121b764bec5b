"""The client with a real server in a process of its own: what it brings, and what it says where things go wrong."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from conftest import (
    PATIENCE_SECONDS,
    ROOT,
    SHIPPED_ADAPTERS,
    ball,
    make_adapter,
    new_server,
    wait_until,
)

from engine.client import Client
from engine.client.launching import Server
from engine.errors import Cancelled, UserError
from engine.imaging.volumes.volume import Volume
from engine.segmentation.segmenter import Segmenter

GEOMETRY = {"spacing_mm": (1, 1, 2), "origin_mm": (5, 6, 7), "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
SHAPE = (6, 20, 24)
posix = pytest.mark.skipif(os.name != "posix", reason="the launcher is a shell script")


@pytest.fixture
def client(server) -> Client:
    return server.client()


@pytest.fixture
def voxels():
    noise = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    return noise + 200 * ball(SHAPE, (3, 10, 12), 4).astype(np.float32)


def many_slices(count=200):
    return np.random.default_rng(1).integers(0, 1000, (count, 32, 32), dtype=np.int16)


def start_job(client, volume, **options):
    """Start a job in a thread, and return it with its events and, at the end, its outcome."""
    events, outcome = [], []

    def run():
        try:
            outcome.append(client.segment(volume, ["brain"], on_progress=events.append, **options))
        except (Cancelled, UserError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, events, outcome


@pytest.mark.parametrize("dtype", [np.int16, ">f4", np.float64, np.uint8])
@pytest.mark.parametrize("options", [{}, {"plane": "coronal", "window": "full"}, {"threshold": 0.25}])
def test_results_are_the_segmenters_own(client, served_models, voxels, dtype, options):
    voxels = voxels.clip(0, 255).astype(dtype)
    volume = client.put_volume(voxels, **GEOMETRY)
    answers = client.segment(volume, ["brain", "left lung"], adapter="ball", **options)

    segmenter = Segmenter(str(served_models / "ball"), device="cpu", precision="fp32", batch_size=1)
    plane, window, threshold = (options.get(name) for name in ("plane", "window", "threshold"))
    segmenter.set_volume(Volume(voxels, **GEOMETRY), plane, window)
    for answer in answers:
        ours = segmenter.segment(answer.prompt, threshold)
        assert np.array_equal(answer.probability, np.floor(ours.probability.astype(np.float32) * 256))
        assert answer.presence == pytest.approx(ours.presence) and answer.found == ours.found
        assert answer.threshold == ours.threshold
        assert (answer.base, answer.base_sha256) == (segmenter.base.name, segmenter.base.sha256)
        assert answer.adapter_sha256 == segmenter.card.sha256
        for chosen in (0.1, 0.25, 0.5):
            assert np.array_equal(answer.mask(chosen), ours.mask(round(chosen * 256) / 256))
        assert answer.volume_ml(0.25) == pytest.approx(ours.volume_ml(0.25))
    if threshold:
        assert np.array_equal(answer.mask(), ours.mask())


def test_the_shipped_adapter_finds_the_same_as_without_a_server(client):
    voxels = (
        300 * ball((3, 48, 48), (1, 24, 24), 18) + np.random.default_rng(0).integers(0, 40, (3, 48, 48))
    ).astype(np.int16)
    volume = client.put_volume(voxels)
    brain, polyp = client.segment(volume, ["brain", "polyp"], adapter="head-t1", plane="axial")
    segmenter = Segmenter("head-t1", device="cpu", precision="fp32", batch_size=1)
    segmenter.set_volume(Volume(voxels), "axial")
    for answer in (brain, polyp):
        ours = segmenter.segment(answer.prompt)
        assert answer.found == ours.found and answer.presence == pytest.approx(ours.presence)
        assert np.array_equal(answer.mask(), ours.mask())  # at 0.5, which is a 256th
    assert brain.mask().any()
    assert {card["name"] for card in client.adapters()} == {"ball", *SHIPPED_ADAPTERS}
    assert client.bases() == ["mini", "tiny"]


def test_colour_flat_and_transposed_volumes_arrive_whole(client, served_models):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 30, 40, 3), dtype=np.uint8)
    picture = client.put_volume(pixels, flat=True)
    assert picture.shape == (1, 30, 40)
    assert client.segment(picture, ["polyp"], base="tiny")[0].probability.shape == (1, 30, 40)
    voxels = many_slices(6)
    assert client.put_volume(voxels.T.copy().T).id == client.put_volume(voxels).id


def test_a_volume_that_is_there_is_not_sent_again(client, voxels):
    sent = []
    voxels = voxels + np.float32(1)
    for _ in range(2):
        client.put_volume(voxels, **GEOMETRY, on_progress=lambda done, total: sent.append((done, total)))
    assert sent == [(voxels.nbytes, voxels.nbytes)]
    client.put_volume(voxels, on_progress=lambda done, total: sent.append(done))  # the same voxels elsewhere
    assert len(sent) == 2


def test_a_volume_that_was_dropped_is_sent_again_when_it_is_needed(client, voxels):
    volume = client.put_volume(voxels, **GEOMETRY)
    client.forget(volume)
    assert client.segment(volume, ["brain"], adapter="ball")[0].prompt == "brain"
    for number in range(5):  # the server holds four
        client.put_volume(voxels + np.float32(number + 10))
    assert client.segment(volume, ["brain"], adapter="ball")[0].prompt == "brain"


def test_a_volume_is_encoded_once_for_all_its_prompts_and_clients(client, server):
    volume = client.put_volume(many_slices(20))
    events = []
    client.segment(volume, ["brain"], adapter="ball", on_progress=events.append)
    assert events[-1]["state"] == "done" and any(event["state"] == "encoding" for event in events)
    before = client.health()["held"]["bytes"]
    events.clear()
    server.client().segment(volume, ["left lung"], adapter="ball", on_progress=events.append)
    assert not any(event["state"] == "encoding" for event in events)
    assert client.health()["held"]["bytes"] == before
    client.forget(volume)
    assert client.health()["held"]["bytes"] <= before - 20 * 32 * 32 * 2


def test_files_of_the_servers_machine_are_segmented_in_place(client, allowed_folder, voxels):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1, 1, 2))
    sitk.WriteImage(image, allowed_folder / "client.nrrd")
    volume = client.put_path(allowed_folder / "client.nrrd")
    assert volume.shape == SHAPE and volume.voxel_volume_ml == pytest.approx(0.002)
    assert client.put_volume(voxels, spacing_mm=(1, 1, 2)).id == volume.id
    assert client.segment(volume, ["brain"], adapter="ball")[0].probability.shape == SHAPE
    with pytest.raises(UserError, match="may not read files there"):
        client.put_path("/etc/passwd")


def test_progress_says_slices_done_in_all_and_the_time_left(client):
    events = []
    client.segment(client.put_volume(many_slices(30)), ["brain", "polyp"], base="tiny", on_progress=events.append)
    encoding = [event for event in events if event["state"] == "encoding"]
    decoding = [event for event in events if event["state"] == "decoding"]
    for step, total in ((encoding, 30), (decoding, 60)):
        assert [event["done"] for event in step] == sorted(event["done"] for event in step)
        assert {event["total"] for event in step} == {total}
        assert all(event["seconds_left"] is None or event["seconds_left"] >= 0 for event in step)
    assert events[-1]["state"] == "done"


def test_a_job_that_is_cancelled_in_the_middle_of_encoding_ends_before_all_slices_are_encoded(client):
    """A hundred slices of this model take two seconds or more where nothing else runs."""
    voxels, done = many_slices(100), []
    volume = client.put_volume(voxels)
    with pytest.raises(Cancelled):
        client.segment(
            volume,
            ["brain"],
            adapter="head-t1",
            plane="axial",
            on_progress=lambda event: done.append(event.get("done", 0)),
            cancelled=lambda: done and done[-1] >= 1,
        )
    wait_until(lambda: not client.health()["jobs"]["running"])
    assert client._json("GET", f"/volumes/{volume.id}")["bytes"] == voxels.nbytes  # not all of it was encoded
    assert client.segment(client.put_volume(many_slices(3)), ["brain"], base="tiny")  # goes on with others


def test_others_wait_their_turn_are_told_so_and_can_be_cancelled(client, server):
    long = client.put_volume(many_slices())  # minutes, were it not cancelled
    stop = threading.Event()
    first, _, outcome = start_job(client, long, adapter="head-t1", cancelled=stop.is_set)
    wait_until(lambda: client.health()["jobs"]["running"])
    short = client.put_volume(many_slices(2))
    waiting = [start_job(server.client(), short, base="tiny") for _ in range(2)]
    wait_until(lambda: client.health()["jobs"]["waiting"] == 2)
    gone, _, cancelled = start_job(client, short, base="tiny", cancelled=lambda: True)
    gone.join(PATIENCE_SECONDS)
    assert isinstance(cancelled[0], Cancelled)
    wait_until(lambda: client.health()["jobs"]["waiting"] == 2)
    third, _, _ = start_job(client, short, base="tiny")
    wait_until(lambda: client.health()["jobs"]["waiting"] == 3)
    with pytest.raises(UserError, match="3 jobs are waiting already"):
        client.segment(short, ["brain"], base="tiny")
    stop.set()
    for thread in (first, third, *(thread for thread, _, _ in waiting)):
        thread.join(PATIENCE_SECONDS)
    assert isinstance(outcome[0], Cancelled)
    assert [events[0]["state"] for _, events, _ in waiting] == ["waiting"] * 2
    assert sorted(events[0]["ahead"] for _, events, _ in waiting) == [1, 2]
    assert all(results[0][0].prompt == "brain" for _, _, results in waiting)


def test_the_job_of_a_client_that_hangs_up_ends_in_the_middle(server, client):
    voxels = many_slices()
    volume = client.put_volume(voxels)
    code = (
        "import sys; from engine.client import Client, RemoteVolume; "
        "volume = RemoteVolume(sys.argv[3], (1, 1, 1), 1.0, None); "
        "Client(sys.argv[1], sys.argv[2]).segment(volume, ['brain'], adapter='head-t1', plane='axial')"
    )
    words = [sys.executable, "-c", code, server.url, server.token, volume.id]
    with subprocess.Popen(words, cwd=ROOT) as other:
        wait_until(lambda: client.health()["jobs"]["running"])
        other.kill()
    wait_until(lambda: not client.health()["jobs"]["running"])
    assert client._json("GET", f"/volumes/{volume.id}")["bytes"] == voxels.nbytes  # not all of it was encoded


def test_the_client_loads_no_torch():
    code = (
        "import sys, engine.client.launching; wrong = {'torch', 'SimpleITK', 'transformers', 'fastapi'}; "
        "sys.exit(bool(wrong & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_servers_refusals_are_said_in_its_words(server, client, voxels):
    with pytest.raises(UserError, match="token is missing or wrong"):
        Client(server.url, "wrong")
    with pytest.raises(
        UserError, match=f"there is no adapter 'nothing'; there are {', '.join(['ball', *SHIPPED_ADAPTERS])}"
    ):
        client.segment(client.put_volume(voxels), ["brain"], adapter="nothing")
    with pytest.raises(UserError, match="unknown plane 'up'"):
        client.segment(client.put_volume(voxels), ["brain"], base="tiny", plane="up")
    with pytest.raises(UserError, match=r"9,437,184 bytes and the server takes 8,388,608 at most"):
        client.put_volume(np.zeros((9, 1024, 1024), np.uint8))
    client._body_limit = 1 << 40  # the server knows its own
    with pytest.raises(UserError, match="larger than the 8,388,608 bytes"):
        client.put_volume(np.zeros((9, 1024, 1024), np.uint8))


def test_an_adapter_that_was_trained_again_is_another_one(client, served_models, voxels):
    volume = client.put_volume(voxels)
    make_adapter(served_models / "changing", served_models / "tiny", threshold=0.3)
    assert client.segment(volume, ["brain"], adapter="changing")[0].threshold == 0.3
    make_adapter(served_models / "changing", served_models / "tiny", method="shallow", threshold=0.4)
    assert client.segment(volume, ["brain"], adapter="changing")[0].threshold == 0.4
    shutil.rmtree(served_models / "changing")
    assert len(client.health()["warm"]) <= 3


@pytest.mark.parametrize(
    ("voxels", "options", "message"),
    [
        (np.zeros((3, 3), np.uint8), {}, "shape"),
        (np.zeros((3, 3, 3), complex), {}, "type"),
        (np.zeros((3, 3, 3)), {"spacing_mm": (1, 1)}, "spacing_mm"),
        (np.full((3, 3, 3), np.nan), {}, "NaN"),
        (np.zeros((3, 3, 3)), {"spacing_mm": (1, 1, -1)}, "above zero"),
    ],
)
def test_volumes_of_the_wrong_form_are_refused(client, voxels, options, message):
    with pytest.raises(UserError, match=message):
        client.put_volume(voxels, **options)


def test_what_people_must_know_of_a_volume_and_of_a_prompt_comes_with_the_result(client, voxels):
    assert not client.segment(client.put_volume(voxels), ["brain"])[0].warnings
    holed = voxels.astype(np.float32)
    holed[1, 2:4, 5] = np.nan, np.inf
    plain, foreign = client.segment(client.put_volume(holed), ["brain", "мозг"], base="tiny")
    assert plain.warnings[0].startswith("2 voxels") and "NaN or infinite" in plain.warnings[0]
    assert "the base tiny does not know 'мозг'" in foreign.warnings[1] and len(plain.warnings) == 1
    filled = np.where(np.isfinite(holed), holed, holed[np.isfinite(holed)].min())
    same = client.segment(client.put_volume(filled), ["brain"], base="tiny")[0]
    assert np.array_equal(plain.probability, same.probability)


def test_another_version_is_refused_in_words(server, monkeypatch):
    monkeypatch.setattr("engine.client.client.PROTOCOL", 99)
    with pytest.raises(UserError, match=r"client speaks version 99 .* server version .* install the same"):
        server.client()


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://x", "http://", "http://127.0.0.1:1"])
def test_an_address_without_a_server_is_said_so(url):
    with pytest.raises(UserError, match=r"no address of a server|does not answer"):
        Client(url, "token")


@pytest.fixture
def launcher(tmp_path):
    """A program that runs Python as a child, as PythonSlicer does."""
    path = tmp_path / "PythonSlicer"
    path.write_text(f'#!/bin/sh\necho starting\n"{sys.executable}" "$@"\nexit $?\n')
    path.chmod(0o755)
    return str(path)


@posix
def test_a_killed_server_is_said_so_and_can_be_started_again_also_behind_a_launcher(served_models, launcher):
    with new_server(served_models, python=launcher) as server:
        client = server.start()
        volume = client.put_volume(many_slices(100))
        thread, events, outcome = start_job(client, volume, adapter="head-t1")
        wait_until(lambda: any(event["state"] == "encoding" for event in events))
        os.kill(server.pid, signal.SIGKILL)
        thread.join(PATIENCE_SECONDS)
        assert "has stopped" in str(outcome[0]) and "start it again" in str(outcome[0])
        with pytest.raises(UserError, match="has stopped"):
            client.health()
        assert not server.is_alive
        client = server.start()
        volume = client.put_volume(many_slices(2))
        assert client.segment(volume, ["brain"], base="tiny")[0].prompt == "brain"
        served = psutil.Process(server.pid)
        assert served.ppid() != os.getpid()  # the launcher is between
    assert not served.is_running()


@posix
def test_a_server_that_is_asked_to_end_ends_its_jobs_and_says_so(served_models):
    with new_server(served_models) as server:
        client = server.start()
        thread, events, outcome = start_job(client, client.put_volume(many_slices(100)), adapter="head-t1")
        wait_until(lambda: any(event["state"] == "encoding" for event in events))
        os.kill(server.pid, signal.SIGTERM)
        thread.join(PATIENCE_SECONDS)
        assert str(outcome[0]) == "the server was stopped; start it again"
        wait_until(lambda: not server.is_alive)
        assert "Traceback" not in server.last_words()


def test_a_server_that_cannot_start_says_why():
    with Server(environment={"VLSM_TOKEN": "short"}) as server:
        with pytest.raises(UserError, match=r"did not start: error: VLSM_TOKEN must have 16 or more"):
            server.start()
        assert not server.is_alive
    with pytest.raises(UserError, match="choose another Python"):
        Server(python="/nowhere/python").start()


LAUNCHER = """
import subprocess, sys, time
from engine.client.launching import Server
server = Server(python=sys.argv[1], arguments=["--device", "cpu"])
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


@posix
def test_the_server_ends_with_the_program_that_started_it_also_behind_a_launcher(launcher):
    words = [sys.executable, "-c", LAUNCHER, launcher]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        served = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: not served.is_running())
