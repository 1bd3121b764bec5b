"""A session as a process of its own, and the engine that all sessions share.

A process for each page: its scene is its own, what crashes takes nobody along, and its memory is free when it ends.
"""

import asyncio
import json
import os
import secrets
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from engine.client.launching import ROOT, Server
from engine.errors import UserError
from engine.files import scratch_folder
from engine.server.token import TOKEN_VARIABLE
from viewer import MODULE

START_SECONDS = 120.0  # loading Slicer's libraries from a cold disk takes long
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Start:
    """What a session begins with.

    Attributes:
        engine_url, engine_token: where to compute.
        file: a scan to open; series and frame choose in it.
        segments: a `.seg.nrrd` file of that scan.
        adapter: which is chosen at first.
    """

    engine_url: str
    engine_token: str
    file: str | None = None
    segments: str | None = None
    series: str | None = None
    frame: int | None = None
    adapter: str | None = None


class ServedEngine:
    """A server that somebody else looks after."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token

    def __enter__(self) -> "ServedEngine":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    async def watch(self) -> None:
        """Do nothing."""


class OwnEngine:
    """A server on loopback, which is started again at the same address when it dies.

    Args:
        arguments: of `python -m engine.serve`.
    """

    def __init__(self, arguments: list[str]):
        self._arguments = arguments
        self.url, self.token = "", secrets.token_urlsafe(32)
        self._server = self._new_server()

    def __enter__(self) -> "OwnEngine":
        self._server.start()
        self.url = self._server.url
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()

    async def watch(self) -> None:
        """Look after it until this is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._server.is_alive:
                with suppress(UserError):  # the pages say that it does not answer
                    await asyncio.to_thread(self._start_again)

    def _start_again(self) -> None:
        self._server.stop()
        self._server = self._new_server("--port", str(urlsplit(self.url).port))
        self._server.start()

    def _new_server(self, *more: str) -> Server:
        return Server(None, [*self._arguments, *more], {TOKEN_VARIABLE: self.token})


class SessionProcess:
    """A session: it ends by itself when nobody has looked at it for long, or with the process that started it.

    Attributes:
        secret: what its page must say.
        port: of loopback, where its page is.
    """

    def __init__(self):
        self.secret, self.port = secrets.token_urlsafe(32), 0
        self._kept = ExitStack()
        self._folder = self._kept.enter_context(scratch_folder())  # of files that the page brings
        self._process: asyncio.subprocess.Process | None = None
        self._end: asyncio.Future | None = None

    async def start(self, start: Start) -> None:
        """Start it, and wait until its page is there.

        Raises:
            UserError: it does not start.
        """
        key, log = self._folder / "key", self._folder / "log"
        paths = os.pathsep.join(filter(None, [str(MODULE), str(ROOT), os.environ.get("PYTHONPATH")]))
        key.write_text(self.secret)
        with log.open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "viewer.session", "--authKeyFile", str(key)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is for the one that started it
            )
        self._process.stdin.write(json.dumps(asdict(start) | {"folder": str(self._folder)}).encode() + b"\n")
        try:
            self.port = await asyncio.wait_for(self._port(), START_SECONDS)
        except asyncio.TimeoutError:
            self.port = 0
        words = "" if self.port else log.read_text(errors="replace")[-500:].strip()
        self._end = asyncio.ensure_future(self._until_the_end())
        if not self.port:
            await self.stop()
            raise UserError(f"a session did not start: {words or f'no answer in {START_SECONDS:g} seconds'}")

    async def wait(self) -> None:
        """Wait until it has ended; what it kept on the disk is gone then."""
        await asyncio.shield(self._end)

    async def stop(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()

    async def _until_the_end(self) -> None:
        while await self._process.stdout.read(1 << 16):  # a full pipe would stop it
            pass
        await self._process.wait()
        self._kept.close()

    async def _port(self) -> int:
        async for line in self._process.stdout:
            if line.startswith(b"{"):
                return json.loads(line)["port"]
        return 0
