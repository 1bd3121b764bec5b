"""Requests to a real server on loopback, changed in their parts or in their bytes."""

import json
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

import engine.server.connection
from engine.client.protocol import describe, new_volume_id
from engine.server.app import Settings, create_app
from engine.server.connection import HttpServer
from fuzzing.kinds import Kind
from fuzzing.mutations import mutate_bytes, mutate_json

TOKEN = secrets.token_hex(16)
PATIENCE_SECONDS = 0.2  # of the server, with a client that sends half a request
ANSWER_SECONDS = 9.0
REQUEST = "request.bin"
GEOMETRY = ((1, 1, 2), (5, 6, 7), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
ROUTES = ("/health", "/adapters", "/volumes", "/jobs", "/docs", "/nothing")


class LoopbackServer:
    """A server in a thread of this process, for as long as that lives."""

    def __init__(self, allowed: Path):
        engine.server.connection.SILENT_SECONDS = PATIENCE_SECONDS
        settings = Settings(
            TOKEN,
            "cpu",
            allowed=(allowed,),
            memory_bytes=8 << 20,
            body_bytes=1 << 20,
            step_seconds=PATIENCE_SECONDS,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        served = HttpServer(create_app(settings), 1)
        threading.Thread(target=served.run, args=([self._listener],), daemon=True).start()

    def ask(self, request: bytes) -> bytes:
        """Return all that the server answers until it closes the connection, or nothing more comes.

        Raises:
            TimeoutError: it does neither.
        """
        with socket.create_connection(self._listener.getsockname(), timeout=ANSWER_SECONDS) as connection:
            answer = b""
            try:
                connection.sendall(request)
                while block := connection.recv(1 << 16):
                    answer += block
            except (ConnectionResetError, BrokenPipeError):
                pass
            return answer


def request_kind(allowed: Path) -> Kind:
    """Return the kind of input that is a request to a server, which is started here."""
    server = LoopbackServer(allowed)
    return Kind(_make(allowed), lambda folder: _use(server, folder))


def _use(server: LoopbackServer, folder: Path) -> None:
    """Raises:
    AssertionError: the server met what it did not expect, or serves no longer.
    """
    answer = server.ask((folder / REQUEST).read_bytes())
    if answer:
        assert answer.startswith(b"HTTP/1.1 "), answer[:60]
    status = answer[9:12].decode("latin-1")
    assert status < "500" or status == "503", answer[-200:]
    honest = server.ask(
        f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n".encode()
    )
    assert honest.startswith(b"HTTP/1.1 200"), honest[:100]


def _make(allowed: Path) -> Callable:
    def make(random: np.random.Generator, folder: Path) -> None:
        method, path, headers, body = _ROUTES[random.integers(len(_ROUTES))](random, allowed)
        if random.random() < 0.15:
            path = "/" + mutate_bytes(random, path.encode()).decode("latin-1").replace(" ", "")
        if random.random() < 0.1:
            method = ("GET", "PUT", "POST", "DELETE", "HEAD", "TRACE", "x" * 500)[random.integers(7)]
        lengths = (len(body), len(body), len(body), len(body), 0, len(body) + 5, 10**12, -1, "x", "９")
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: x",
            "Connection: close",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        if random.random() < 0.95:
            lines.append(f"Authorization: Bearer {TOKEN}")
        lines.append(f"Content-Length: {lengths[random.integers(len(lengths))]}")
        request = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
        (folder / REQUEST).write_bytes(mutate_bytes(random, request) if random.random() < 0.08 else request)

    return make


def _volume(random: np.random.Generator, allowed: Path) -> tuple:
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    text = describe(voxels, *GEOMETRY, None, None, False).to_json()
    changed = mutate_json(random, json.loads(text)).decode("latin-1").replace("\n", " ").replace("\r", " ")
    text = changed[:5000] if random.random() < 0.8 else text
    digest = new_volume_id(text)
    digest.update(voxels.tobytes())
    body = voxels.tobytes() if random.random() < 0.8 else mutate_bytes(random, voxels.tobytes())
    return "PUT", f"/volumes/{digest.hexdigest()}", {"VLSM-Volume": text.replace("\0", "")}, body


def _job(random: np.random.Generator, allowed: Path) -> tuple:
    job = {"volume": "0" * 32, "prompts": ["brain"], "adapter": "x", "threshold": 0.5, "plane": "axial"}
    return "POST", "/jobs", {"Content-Type": "application/json"}, mutate_json(random, job)[:60_000]


def _file(random: np.random.Generator, allowed: Path) -> tuple:
    wanted = {"path": str(allowed / "scan.nii.gz"), "series": "1", "frame": 0}
    return "POST", "/volumes", {"Content-Type": "application/json"}, mutate_json(random, wanted)[:60_000]


def _plain(random: np.random.Generator, allowed: Path) -> tuple:
    id = random.bytes(16).hex()
    paths = (*ROUTES, f"/volumes/{id}", f"/jobs/{id}", f"/jobs/{id}/results/0/mask?threshold=x")
    return ("GET", "DELETE")[random.integers(2)], paths[random.integers(len(paths))], {}, b""


_ROUTES = (_volume, _volume, _job, _file, _plain)
