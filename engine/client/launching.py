"""Start a server as a process of this machine, and end it with everything it started. Needs no torch."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from engine.client.client import Client
from engine.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0  # loading PyTorch from a cold disk takes long
STOP_SECONDS = 5.0
DYING_SECONDS = 5.0  # between a killed server's last word and its end; with a launcher, on a busy machine


class Server:
    """A server of one's own on loopback; it ends with the process that started it, whatever happens to that.

    Attributes:
        url, token, pid: where it is, what it wants, and its process (not a launcher's), once it was started.

    Args:
        python: the Python that has the engine's packages, such as PythonSlicer; this one when None.
        arguments: further ones of `python -m engine.serve`, such as ["--device", "cpu"].
        environment: variables beside those of this process.
    """

    def __init__(self, python: str | None = None, arguments: Sequence[str] = (), environment: dict | None = None):
        self._python, self._arguments = python or sys.executable, list(arguments)
        self._environment = environment or {}
        self.url, self.token, self.pid = "", "", 0
        self._stopping = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._folder: tempfile.TemporaryDirectory | None = None  # of its standard error

    def start(self, timeout_seconds: float = START_SECONDS) -> Client:
        """Start the server, anew where it was stopped or killed, and return a client of it.

        Raises:
            UserError: it does not start; the message ends with its own last words.
        """
        self.stop()
        self._folder = tempfile.TemporaryDirectory(prefix="vlsm-server-")
        arguments = ["engine.serve", "--parent-pid", str(os.getpid()), *self._arguments]
        with self._log.open("wb") as log:
            self._process = start_command(self._python, arguments, self._environment, subprocess.PIPE, log)
        greeting = self._greeting(timeout_seconds)
        if greeting is None:
            words = self.last_words()
            self.stop()
            raise UserError(f"the server did not start: {words or f'no answer in {timeout_seconds:g} seconds'}")
        self.url, self.token, self.pid = greeting["url"], greeting["token"], greeting["pid"]
        return self.client()

    def client(self) -> Client:
        """Return another client of the server that was started."""
        return Client(self.url, self.token, self._stays_alive)

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        """Return the end of what the server wrote to its standard error."""
        return self._log.read_text(errors="replace")[-2000:].strip() if self._folder else ""

    def stop(self) -> None:
        """End the server and every process that it started."""
        with self._stopping:  # another thread may stop it too, and both return when it is gone
            if self._process:
                end_tree(self._process)
                self._process.stdout.close()
            if self._folder:
                self._folder.cleanup()
            self._process = self._folder = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log.txt"

    def _stays_alive(self) -> bool:
        """Return whether it lives on; one that was killed lets go of its connections a moment before it is gone."""
        try:
            self._process.wait(DYING_SECONDS)
        except (subprocess.TimeoutExpired, AttributeError):
            return self._process is not None
        return False

    def _greeting(self, timeout_seconds: float) -> dict | None:
        """Return the line of JSON with which the server says where it is; None if it does not come."""
        lines: queue.Queue[bytes | None] = queue.Queue()
        stdout = self._process.stdout

        def read() -> None:
            for line in stdout:  # a launcher may say something before
                lines.put(line)
                if line.startswith(b"{"):
                    return
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        end = time.monotonic() + timeout_seconds
        while (left := end - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                return None
            if line is None:
                return None
            if line.startswith(b"{"):
                return json.loads(line)
        return None


def start_command(
    python: str, arguments: Sequence[str], environment: dict[str, str], stdout: int | IO, stderr: int | IO
) -> subprocess.Popen:
    """Start a command of the engine, such as ["engine.serve", "--port", "8000"], as a group of processes.

    Raises:
        UserError: there is no such Python.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        return subprocess.Popen(
            [python, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            start_new_session=True,  # a group of its own, to be ended as a whole
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows would show a console
        )
    except OSError as error:
        raise UserError(f"{python} cannot be started ({error}); choose another Python") from error


def interrupt(process: subprocess.Popen) -> None:
    """Ask a command to save and end, as Ctrl-C does. Windows cannot ask a process without a console: there it ends
    at once."""
    if sys.platform == "win32":
        end_tree(process)
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)


def end_tree(process: subprocess.Popen) -> None:
    """End a process and its children: a launcher such as PythonSlicer is not the server itself."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if _has_ended(process, STOP_SECONDS):
            return


def _has_ended(process: subprocess.Popen, seconds: float) -> bool:
    """Return whether all processes of a group end in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except (ProcessLookupError, PermissionError):  # nobody is left, or only a zombie
            return True
        time.sleep(0.02)
    return False
