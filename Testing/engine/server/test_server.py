"""The server, asked by hand: tokens, limits, paths, hostile clients, and what it holds."""

import asyncio
import base64
import hmac
import http.client
import json
import os
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from conftest import PATIENCE_SECONDS, SHIPPED_ADAPTERS, ball, wait_until
from sending import sent_whole

from engine.client import Client
from engine.client.protocol import describe, mask_of_levels, new_volume_id, to_levels
from engine.errors import UserError
from engine.imaging.volumes.volume import Volume
from engine.segmentation.cache import EncodingCache
from engine.segmentation.segmenter import Result
from engine.server.app import Settings, create_app
from engine.server.connection import HttpServer
from engine.server.jobs import Job, JobQueue, Task
from engine.server.refusal import Refusal
from engine.server.store import HeldResults, HeldVolume, Store
from engine.server.warm import WarmSegmenters

TOKEN = "a token for the tests"
GEOMETRY = ((1, 1, 2), (5, 6, 7), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


def ask(server, method, path, body=None, token=None, **headers):
    """Return status and JSON of an answer."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=PATIENCE_SECONDS)
    headers = {"Authorization": f"Bearer {server.token if token is None else token}", **headers}
    if isinstance(body, dict):
        body, headers["Content-Type"] = json.dumps(body), "application/json"
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if answer.headers[
            "Content-Type"
        ] == "application/json" else content
    finally:
        connection.close()


def volume_request(voxels, **changes):
    """Return path, body and header of the request that brings a volume."""
    text = describe(voxels, *GEOMETRY, None, None, False).to_json()
    text = json.dumps(json.loads(text) | changes)
    digest = new_volume_id(text)
    digest.update(voxels.tobytes())
    return f"/volumes/{digest.hexdigest()}", voxels.tobytes(), {"VLSM-Volume": text}


@pytest.fixture
def voxels():
    noise = np.random.default_rng(0).normal(100, 10, (4, 20, 24))
    return (noise + 200 * ball(noise.shape, (2, 10, 12), 4)).astype(np.int16)


@pytest.fixture
def held(server, voxels):
    path, body, headers = volume_request(voxels)
    assert ask(server, "PUT", path, body, **headers)[0] == 200
    return path.rpartition("/")[2]


@contextmanager
def quick_server(**settings):
    """A server in a thread of this process."""
    served = HttpServer(create_app(Settings(TOKEN, device="cpu", **settings)), grace_seconds=2)
    listener = socket.create_server(("127.0.0.1", 0))
    served.url, served.token = f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN
    thread = threading.Thread(target=served.run, args=([listener],))
    thread.start()
    try:
        yield served
    finally:
        served.should_exit = True
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_it_listens_on_this_machine_alone(server):
    listening = [
        c.laddr.ip for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/adapters"),
        ("GET", "/nothing"),
        ("PUT", "/volumes/" + "0" * 32),
        ("POST", "/jobs"),
        ("DELETE", "/jobs/" + "0" * 32),
    ],
)
@pytest.mark.parametrize("token", ["", "wrong", "ünknown"])
def test_nothing_is_answered_without_the_token(server, method, path, token):
    status, answer = ask(server, method, path, token=token.encode("latin-1").decode("latin-1"))
    assert status == 401 and "token" in answer["detail"]


def test_a_token_that_is_almost_right_is_wrong_and_takes_as_long_to_compare(voxels, monkeypatch):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda *tokens: compared.append(tokens) or compare(*tokens))
    almost = [TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), TOKEN[:-1] + "S"]
    with quick_server() as served:
        assert [ask(served, "GET", "/health", token=token)[0] for token in (*almost, TOKEN)] == [401] * 4 + [200]
    assert [given.decode() for given, _ in compared] == [*almost, TOKEN]  # each as a whole


def test_the_page_of_the_routes_takes_the_token_as_a_password_and_loads_nothing(server):
    basic = "Basic " + base64.b64encode(f"me:{server.token}".encode()).decode()
    status, page = ask(server, "GET", "/docs", Authorization=basic)
    assert status == 200
    assert all(route in page for route in (b"/volumes/{id}", b"/jobs", b"/health", b"prompts"))
    assert b"<script" not in page and b"http:" not in page and b"https:" not in page
    assert ask(server, "GET", "/health", Authorization=basic)[0] == 401  # a browser would add it to any request
    status, description = ask(server, "GET", "/openapi.json")
    assert status == 200 and "/jobs" in description["paths"]


def test_a_job_says_how_far_it_is_and_what_it_found(server, held, voxels):
    status, answer = ask(
        server, "POST", "/jobs", {"volume": held, "prompts": ["brain", "left lung"], "adapter": "ball"}
    )
    events = [json.loads(line) for line in answer.splitlines()]
    job = events[-1]["job"]
    assert status == 200
    assert {event["job"] for event in events} == {job}
    assert events[-1]["state"] == "done" and events[-1]["shape"] == list(voxels.shape)
    assert [row["prompt"] for row in events[-1]["results"]] == ["brain", "left lung"]
    for number, row in enumerate(events[-1]["results"]):
        path = f"/jobs/{job}/results/{number}"
        probability = ask(server, "GET", f"{path}/probability")[1]
        mask = np.frombuffer(ask(server, "GET", f"{path}/mask")[1], np.uint8)
        levels = np.frombuffer(probability, np.uint8)
        assert len(levels) == voxels.size
        assert np.array_equal(mask, levels >= 77) and row["threshold"] == 0.3  # 0.3 is nearest to 77/256
        assert row["voxels"] == mask.sum() and row["volume_ml"] == pytest.approx(mask.sum() * 0.002)
        other = np.frombuffer(ask(server, "GET", f"{path}/mask?threshold=0.5")[1], np.uint8)
        assert np.array_equal(other, levels >= 128)
    assert ask(server, "DELETE", f"/jobs/{job}") == (200, {"cancelled": False, "forgotten": True})
    assert ask(server, "GET", f"/jobs/{job}/results/0/probability")[0] == 404


def test_a_job_that_is_cancelled_computes_nothing_after_the_slices_in_hand(served_models, monkeypatch):
    monkeypatch.setenv("VLSM_MODELS", str(served_models))
    warm, reported = WarmSegmenters("cpu", "fp32", "1", 1), []
    volume = Volume(np.random.default_rng(0).integers(0, 1000, (4000, 32, 32), dtype=np.int16))

    def work(job, report):  # in the thread that computes, after each slice
        return warm.segment(job, lambda event: (reported.append(job.cancelled), report(event)))

    async def cancel_in_the_middle():
        queue = JobQueue(work, lambda job, answer: {"state": "done"}, 1)
        running, job = asyncio.create_task(queue.run()), Job(Task(("brain",), base="tiny"), HeldVolume("0", volume))
        queue.submit(job)
        while job.event.get("done", 0) < 3:
            job.changed.clear()
            await job.changed.wait()
        queue.cancel(job)
        while job.event["state"] == "encoding":
            job.changed.clear()
            await job.changed.wait()
        running.cancel()
        return job.event

    assert asyncio.run(cancel_in_the_middle()) == {"state": "cancelled"}
    assert len(reported) < 4000 and sum(reported) == 1


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"dtype": "|O"}, 400, "type '|O'"),
        ({"shape": [4, 20]}, 400, "shape"),
        ({"shape": [-4, 20, 24]}, 400, "shape"),
        ({"shape": [4, 20, 25]}, 400, "3,840 of 4,000 bytes"),
        ({"shape": [4, 20, 23]}, 400, "more voxels"),
        ({"shape": [10**9, 10**9, 10**9]}, 413, "at most"),
        ({"shape": [10**40, 1, 1]}, 413, "at most"),
        ({"spacing_mm": [1, 1, 0]}, 400, "above zero"),
        ({"spacing_mm": [1, 1]}, 400, "3 numbers"),
        ({"spacing_mm": [1, 1, float("nan")]}, 400, "3 numbers"),
        ({"spacing_mm": [1, 1, 10**400]}, 400, "3 numbers"),
        ({"spacing_mm": [1, 1, 10**40]}, 400, "3 numbers"),
        ({"direction": [0] * 9}, 400, "inverted"),
        ({"origin_mm": "here"}, 400, "3 numbers"),
        ({"dtype": "\ud800"}, 400, "cannot be sent"),
        ({"name": "Doe"}, 400, "does not describe"),
    ],
)
def test_a_volume_of_the_wrong_form_is_refused_in_words(server, voxels, changes, status, message):
    path, body, headers = volume_request(voxels, **changes)
    answer = ask(server, "PUT", path, body, **headers)
    assert answer[0] == status and message in answer[1]["detail"]
    assert ask(server, "GET", path)[0] == 404


def test_other_voxels_than_announced_are_refused(server, voxels):
    path, _, headers = volume_request(voxels)
    status, answer = ask(server, "PUT", path, (voxels + 1).tobytes(), **headers)
    assert status == 400 and "hash differs" in answer["detail"]


@pytest.mark.parametrize("text", ["", "x", "[]", "3", "{}", '{"dtype": 5, "shape": 5}', "[" * 9000])
def test_a_header_that_is_no_description_is_refused(server, text):
    status, answer = ask(server, "PUT", "/volumes/" + "0" * 32, b"", **{"VLSM-Volume": text})
    assert status == 400 and "detail" in answer


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"prompts": []}, 422, "prompts"),
        ({"prompts": [" "]}, 400, "empty prompt"),
        ({"prompts": ["x" * 301]}, 422, "300"),
        ({"prompts": ["x"] * 65}, 422, "64"),
        ({"threshold": 1.5}, 422, "threshold"),
        ({"adapter": "nothing"}, 400, f"there are {', '.join(['ball', *SHIPPED_ADAPTERS])}"),
        ({"adapter": "../served/ball"}, 400, "there is no adapter"),
        ({"base": "clipseg"}, 400, "there is no base 'clipseg'"),  # would be fetched from a network
        ({"volume": "0" * 32}, 404, "send it again"),
        ({"volume": "../health"}, 422, "volume"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_in_words(server, held, changes, status, message):
    request = {"volume": held, "prompts": ["brain"], "adapter": "ball", **changes}
    answer = ask(server, "POST", "/jobs", request)
    assert answer[0] == status and message in answer[1]["detail"]


def test_what_only_the_model_can_refuse_is_said_by_the_job(server, held):
    for changes, message in (({"plane": "up"}, "unknown plane"), ({"prompts": ["x y z " * 45]}, "tokens")):
        request = {"volume": held, "prompts": ["brain"], "adapter": "ball", **changes}
        event = json.loads(ask(server, "POST", "/jobs", request)[1].splitlines()[-1])
        assert event["state"] == "failed" and message in event["message"]


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("PUT", "/volumes/" + "0" * 32, {"Content-Length": str(9 << 20)}),
        ("PUT", "/volumes/" + "0" * 32, {"Content-Length": str(1 << 60)}),
        ("POST", "/jobs", {"Content-Length": str(1 << 20)}),
    ],
)
def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(server, method, path, headers):
    status, answer = ask(server, method, path, b"", **headers)
    assert status == 413 and "larger" in answer["detail"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("PUT", "/volumes/" + "0" * 32, {"Authorization": "Bearer wrong"}, 401, "token"),
        ("PUT", "/volumes/" + "0" * 32, {"VLSM-Protocol": "99"}, 409, "same version"),
        ("PUT", "/volumes/" + "0" * 32, {"VLSM-Volume": "no description"}, 400, "does not describe"),
        ("PUT", "/volumes/" + "0" * 32, {"VLSM-Volume": '{"dtype": "|u1", "shape": [9, 1024, 1024]}'}, 413, "crop"),
        ("PUT", "/volumes/0", {}, 413, "larger than"),
        ("POST", "/jobs", {}, 413, "larger than"),
    ],
)
def test_a_refusal_reaches_a_client_that_is_still_sending(server, method, path, headers, status, message):
    answer = sent_whole(server.url, server.token, method, path, **headers)
    assert answer[0] == status and message in answer[1]


def test_that_there_is_no_room_reaches_a_client_that_is_still_sending():
    path, _, headers = volume_request(np.zeros((4, 1024, 1024), np.uint8))
    with quick_server(memory_bytes=4 << 20) as served:
        address = urlsplit(served.url)
        first = http.client.HTTPConnection(address.hostname, address.port, timeout=PATIENCE_SECONDS)
        first.putrequest("PUT", path)
        for name, value in {"Authorization": f"Bearer {TOKEN}", "Content-Length": 4 << 20, **headers}.items():
            first.putheader(name, value)
        first.endheaders()
        wait_until(lambda: ask(served, "GET", "/health")[1]["held"]["bytes"] == 4 << 20)
        status, message = sent_whole(served.url, TOKEN, "PUT", path, **headers)
        first.close()
    assert status == 503 and "no room for this one" in message


def test_a_client_sends_no_more_of_a_volume_that_is_refused(monkeypatch):
    monkeypatch.setattr("engine.server.guard.UNWANTED_BYTES", 1 << 40)  # the server would take it to its end
    sent = []
    with quick_server(body_bytes=1 << 20) as served:
        client = Client(served.url, TOKEN)
        client._body_limit = 1 << 40
        with pytest.raises(UserError, match="larger than the 1,048,576 bytes"):
            client.put_volume(
                np.zeros((128, 1024, 1024), np.uint8), on_progress=lambda done, total: sent.append(done)
            )
    assert max(sent, default=0) < 64 << 20  # what the system holds on its way


def test_who_sends_on_after_a_refusal_is_hung_up_on():
    with quick_server(step_seconds=0.3) as served:
        address = urlsplit(served.url)
        with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 401 and answer.read()
            with pytest.raises(ConnectionError):
                wait_until(lambda: not connection.send(b" "))


def endless(server, path, token):
    """Send a body without an end; return what comes back before the server hangs up, and how much was sent."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        sent, piece = 0, b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            while sent < 64 << 20:
                connection.sendall(piece)
                sent += 65536
        except OSError:
            pass
        try:
            return connection.recv(1000), sent
        except OSError:
            return b"", sent


def test_an_endless_body_is_cut_off(server):
    for token in (server.token, "wrong"):
        answer, sent = endless(server, "/jobs", token)
        assert sent < 32 << 20
        assert not answer or answer.split()[1] in (b"413", b"401")
    assert ask(server, "GET", "/health")[0] == 200


def test_a_slow_body_is_given_up(voxels):
    with quick_server(step_seconds=0.3) as served:
        path, body, headers = volume_request(voxels)
        address = urlsplit(served.url)
        with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
            lines = [f"PUT {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}"]
            lines += [f"Content-Length: {len(body)}", f"VLSM-Volume: {headers['VLSM-Volume']}", "", ""]
            connection.sendall("\r\n".join(lines).encode())
            for byte in body[:50]:  # steadily, but too slowly
                connection.sendall(bytes([byte]))
                if select.select([connection], [], [], 0.05)[0]:
                    break
            assert b"408" in connection.recv(100)
        assert ask(served, "GET", path)[0] == 404
        assert ask(served, "GET", "/health")[1]["held"]["bytes"] == 0  # no room is kept for it any more


def test_a_connection_that_never_asks_is_closed(monkeypatch):
    monkeypatch.setattr("engine.server.connection.SILENT_SECONDS", 0.2)
    with quick_server() as served:
        address = urlsplit(served.url)
        with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
            assert connection.recv(100) == b""


def test_a_hundred_hostile_clients_do_not_stop_it_from_serving_the_honest_one(server, held):
    address = urlsplit(server.url)
    starts = [
        b"",
        b"GET /health HTTP/1.1\r\nX: ",
        b"PUT /volumes/" + b"0" * 32 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n123",
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
    ]
    place = address.hostname, address.port
    hostile = [socket.create_connection(place, timeout=PATIENCE_SECONDS) for _ in range(100)]
    try:
        for number, connection in enumerate(hostile):
            connection.sendall(starts[number % len(starts)])
        answer = ask(server, "POST", "/jobs", {"volume": held, "prompts": ["brain"], "adapter": "ball"})[1]
        assert json.loads(answer.splitlines()[-1])["state"] == "done"
    finally:
        for connection in hostile:
            connection.close()


def answer_to(server, request: bytes) -> bytes:
    """Return what comes back for raw bytes before the server hangs up."""
    address, answer = urlsplit(server.url), b""
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        try:
            connection.sendall(request)
            while block := connection.recv(1 << 16):
                answer += block
        except ConnectionError:
            pass
    return answer


@pytest.mark.parametrize(
    "target",
    [
        "/../../etc/passwd",
        "/volumes/../../../etc/passwd",
        "/volumes/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "//etc/passwd",
        "/docs/..%00/",
        "http://elsewhere.invalid/etc/passwd",
        "/jobs/" + "0" * 32 + "/results/..%2f0/mask",
        "/" + "x" * 100_000,
    ],
)
def test_no_path_in_a_request_leads_to_a_file(server, target):
    head = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    answer = answer_to(server, head.encode())
    assert answer.split()[1:2] in ([b"404"], [b"405"], [b"422"], [b"400"]) and b"root:" not in answer
    assert ask(server, "GET", "/health")[0] == 200


def test_headers_without_an_end_are_cut_off(server):
    answer = answer_to(server, b"GET /health HTTP/1.1\r\n" + b"X: " + b"x" * (4 << 20))
    assert not answer or answer.split()[1] == b"400"
    assert ask(server, "GET", "/health")[0] == 200


def test_a_hundred_clients_at_once_each_get_their_own_answer(server):
    with ThreadPoolExecutor(100) as clients:
        tokens = [server.token if number % 2 else "wrong" for number in range(100)]
        answers = list(clients.map(lambda token: ask(server, "GET", "/health", token=token)[0], tokens))
    assert answers == [401, 200] * 50


def test_a_client_that_does_not_take_its_answer_is_given_up(served_models, monkeypatch):
    monkeypatch.setenv("VLSM_MODELS", str(served_models))
    large = np.random.default_rng(0).integers(0, 255, (64, 512, 512), dtype=np.uint8)
    path, body, headers = volume_request(large)
    with quick_server(step_seconds=3, batch_size="32") as served:  # enough for the volume on a busy machine
        assert ask(served, "PUT", path, body, **headers)[0] == 200
        job = {"volume": path.rpartition("/")[2], "prompts": ["brain"], "adapter": "ball"}
        last = json.loads(ask(served, "POST", "/jobs", job)[1].splitlines()[-1])
        address = urlsplit(served.url)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect((address.hostname, address.port))
            lines = [f"GET /jobs/{last['job']}/results/0/probability HTTP/1.1", "Host: x"]
            connection.sendall("\r\n".join([*lines, f"Authorization: Bearer {TOKEN}", "", ""]).encode())
            connection.recv(1, socket.MSG_PEEK)  # it has begun to answer
            wait_until(lambda: not served.server_state.tasks)  # and has ended that
            received = 0
            try:
                while block := connection.recv(1 << 16):
                    received += len(block)
            except ConnectionError:
                pass
        assert received < large.size
        assert ask(served, "GET", "/health")[0] == 200


def test_files_are_read_where_that_is_allowed(server, allowed_folder, voxels):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1, 1, 2))
    sitk.WriteImage(image, allowed_folder / "scan.nii.gz")
    status, answer = ask(server, "POST", "/volumes", {"path": str(allowed_folder / "scan.nii.gz")})
    assert status == 200 and answer["shape"] == list(voxels.shape) and answer["spacing_mm"] == [1, 1, 2]
    assert ask(server, "GET", f"/volumes/{answer['id']}")[0] == 200
    status, answer = ask(server, "POST", "/volumes", {"path": str(allowed_folder / "other.nii.gz")})
    assert status == 400 and "does not exist" in answer["detail"]


def test_a_small_file_that_would_unpack_to_more_than_the_limit_is_refused_by_its_header(server, allowed_folder):
    """The server takes 8 MiB; each of these has a few kilobytes, and its voxels are never unpacked."""
    zeros = sitk.Image([512, 512, 20], sitk.sitkInt16)
    for name in ("bomb.nii.gz", "bomb.nrrd", "bomb.mha"):
        path = allowed_folder / name
        sitk.WriteImage(zeros, path, True)
        assert path.stat().st_size < 100_000
        status, answer = ask(server, "POST", "/volumes", {"path": str(path)})
        assert status == 413 and "server takes" in answer["detail"], (name, answer)
        path.unlink()


def test_files_elsewhere_are_not_read_by_any_trick(server, allowed_folder, tmp_path, voxels):
    secret = tmp_path / "secret.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(voxels), secret)
    (allowed_folder / "link.nii.gz").symlink_to(secret)
    (allowed_folder / "folder").mkdir()
    os.mkfifo(allowed_folder / "pipe.nrrd")
    (allowed_folder / "folder" / "1.dcm").symlink_to(secret)
    (allowed_folder / "round").symlink_to(allowed_folder / "round")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    (allowed_folder / "detached.mhd").write_text(f"{header}ElementDataFile = {secret}\n")
    (allowed_folder / "detached.mha").write_text(f"{header}ElementDataFile = {secret}\n")
    (allowed_folder.parent / f"{allowed_folder.name}-2").mkdir()
    tricks = [
        secret,
        tmp_path / "missing.nii.gz",
        f"{allowed_folder}/../{tmp_path.name}/secret.nii.gz",
        f"{allowed_folder}-2",
        allowed_folder / "pipe.nrrd",
        allowed_folder / "link.nii.gz",
        allowed_folder / "folder",
        allowed_folder / "round",
        allowed_folder / "detached.mhd",
        allowed_folder / "detached.mha",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "",
        "\0",
        "\ud800",
        "~",
    ]
    for trick in tricks:
        status, answer = ask(server, "POST", "/volumes", {"path": str(trick)})
        assert status == (422 if trick == "\ud800" else 403), (trick, answer)
        assert "secret" not in answer["detail"]


def test_without_allowed_folders_no_file_is_read(voxels, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), tmp_path / "scan.nii.gz")
    with quick_server() as served:
        assert ask(served, "POST", "/volumes", {"path": str(tmp_path / "scan.nii.gz")})[0] == 403


def test_logs_name_neither_files_nor_prompts(server, allowed_folder, held):
    (allowed_folder / "DOE^JANE.nii.gz").write_bytes(b"damaged")
    assert ask(server, "POST", "/volumes", {"path": str(allowed_folder / "DOE^JANE.nii.gz")})[0] == 400
    ask(server, "POST", "/jobs", {"volume": held, "prompts": ["jane's tumour"], "adapter": "ball", "plane": "up"})
    assert "DOE" not in server.last_words() and "jane" not in server.last_words()


def test_an_unexpected_error_is_answered_and_logged_without_its_words(voxels, monkeypatch, caplog):
    def fail(path, *arguments):
        raise KeyError(path)

    monkeypatch.setattr("engine.server.app.read_allowed", fail)
    with quick_server() as served:
        status, answer = ask(served, "POST", "/volumes", {"path": "DOE^JANE"})
    assert status == 500 and "unexpected KeyError" in answer["detail"]
    assert "unexpected KeyError" in caplog.text and "test_server.py" in caplog.text
    assert "DOE" not in caplog.text + str(answer)


def test_200_jobs_in_a_row_do_not_grow_its_memory(server):
    process, sizes = psutil.Process(server.pid), []
    random = np.random.default_rng(0)
    for number in range(200):
        path, body, headers = volume_request(random.integers(0, 1000, (4, 256, 256), dtype=np.int16))
        assert ask(server, "PUT", path, body, **headers)[0] == 200
        request = {"volume": path.rpartition("/")[2], "prompts": ["brain"], "adapter": "ball"}
        last = json.loads(ask(server, "POST", "/jobs", request)[1].splitlines()[-1])
        assert last["state"] == "done", number
        assert len(ask(server, "GET", f"/jobs/{last['job']}/results/0/probability")[1]) == 4 * 256 * 256
        ask(server, "DELETE", f"/jobs/{last['job']}")
        sizes.append(process.memory_info().rss)
    assert max(sizes[-20:]) - max(sizes[80:100]) < 4 << 20, [size >> 20 for size in sizes[::20]]
    held = ask(server, "GET", "/health")[1]["held"]
    assert held["volumes"] == 4 and held["bytes"] < 64 << 20


def results_of(volume_id, nbytes):
    return HeldResults(volume_id, (np.zeros(nbytes, np.uint8),), (0.5,), (True,))


def held_volume(id, nbytes):
    return HeldVolume(id, Volume(np.zeros((1, 1, nbytes), np.uint8)))


def test_the_store_drops_what_was_unused_longest():
    dropped = []
    store = Store(limit_bytes=100, limit_volumes=3, on_drop=dropped.append)
    for id in "abc":
        store.put(id, held_volume(id, 30))
    store.get_volume("a")
    store.put("job", results_of("a", 20))
    assert dropped == ["b"] and store.nbytes == 80
    for id in "de":
        store.put(id, held_volume(id, 1))
    assert store.volumes == ["a", "d", "e"] and store.results == ["job"]
    with store.room_for(90):
        assert store.nbytes <= 100 and dropped == ["b", "c", "a"]
        with pytest.raises(Refusal, match="try again soon"), store.room_for(20):
            pass
    with pytest.raises(Refusal, match="at most"), store.room_for(101):
        pass


def test_to_forget_a_volume_is_to_forget_its_encodings_and_results():
    store = Store(limit_bytes=1000, limit_volumes=3)
    volume = held_volume("a", 30)
    volume.encodings.put("key", np.zeros(50, np.uint8))
    store.put("a", volume)
    store.put("job", results_of("a", 20))
    store.put("other", results_of("b", 20))
    assert isinstance(volume.encodings, EncodingCache) and store.nbytes == 120
    assert store.forget("a") and not store.forget("a")
    assert store.nbytes == 20 and store.results == ["other"]


def test_masks_of_levels_are_the_segmenters_own_at_256ths():
    probability = np.random.default_rng(0).random((3, 50, 50)).astype(np.float16)
    probability.flat[:3] = 0, 1, 0.5
    volume = Volume(np.zeros(probability.shape, np.uint8))
    result = Result("x", volume, probability, presence=1, threshold=0.5, presence_threshold=0)
    levels = to_levels(probability)
    for level in range(1, 256):
        assert np.array_equal(mask_of_levels(levels, level / 256), result.mask(level / 256))
    assert np.array_equal(mask_of_levels(levels, 0.3), result.mask(77 / 256))
    assert not mask_of_levels(levels, 1e-9).flat[0]
