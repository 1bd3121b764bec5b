"""Where the engine runs: in a process of this machine, or on a server elsewhere. Neither blocks Slicer."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from engine.client import Client
from engine.client.launching import ROOT, Server, start_command
from engine.errors import UserError
from VLSMSegmenterLib.shared.dependencies import PACKAGES, Report

CHECK_SECONDS = 120  # loading PyTorch from a cold disk takes long
_INSPECT = """
import importlib.metadata, importlib.util, json, platform, sys
report = {"python": platform.python_version(), "versions": {}}
for module, name in json.loads(sys.argv[1]).items():
    if importlib.util.find_spec(module):
        try:
            report["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            report["versions"][name] = ""
if "torch" in report["versions"]:
    try:
        import torch
        if torch.cuda.is_available():
            report["gpu"] = torch.cuda.get_device_name(0)
        elif torch.backends.mps.is_available():
            report["gpu"] = "of Apple"
    except Exception as error:
        report["torch_error"] = f"{type(error).__name__}: {error}"[:200]
print(json.dumps(report))
"""
START_SECONDS = 600  # on a busy machine; who does not want to wait cancels


class LocalEngine:
    """A process of this machine, started when it is first needed and warm from then on.

    Args:
        python: that has the engine's packages; Slicer's own when it is empty.
        arguments: further ones of `python -m engine.serve`.

    Attributes:
        is_starting: whether somebody waits for it to start; `stop` ends that.
    """

    def __init__(self, python: str = "", arguments: tuple[str, ...] = ()):
        self.python = python or slicers_python()
        self._server = Server(self.python, arguments, _environment(self.python))
        self._client: Client | None = None
        self.is_starting = False
        self._asking = threading.Lock()

    def client(self) -> Client:
        """Return a client, starting the engine where it does not run. Takes seconds: call it in a thread.

        Raises:
            UserError: it does not start.
        """
        with self._asking:
            if self._client is None or not self._server.is_alive:
                self.is_starting = True
                try:
                    self._client = self._server.start(START_SECONDS)
                finally:
                    self.is_starting = False
            return self._client

    def stop(self) -> None:
        """End the process and all that it started; whoever waits for it gets a UserError."""
        self._client = None
        self._server.stop()

    def run(self, arguments: list[str], log: IO) -> subprocess.Popen:
        """Start another command of the engine, such as ["engine.train", "--data", …]; what it says goes to `log`.

        Raises:
            UserError: there is no such Python.
        """
        return start_command(self.python, arguments, _environment(self.python), log, log)

    def describe(self) -> str:
        return f"this computer ({self.python})"


class RemoteEngine:
    """A server that somebody started, reached by its address with its token."""

    is_starting = False

    def __init__(self, url: str, token: str):
        self._url, self._token = url.strip(), token.strip()
        self._client: Client | None = None

    def client(self) -> Client:
        """Return a client.

        Raises:
            UserError: no such server answers.
        """
        if self._client is None:
            self._client = Client(self._url, self._token)
        return self._client

    def stop(self) -> None:
        """Forget the connection; the server is not ours to end."""
        self._client = None

    def describe(self) -> str:
        return self._url


def slicers_python() -> str:
    """Return Slicer's Python, or this one where there is no Slicer."""
    return shutil.which("PythonSlicer") or sys.executable


def inspect_python(python: str = "") -> Report:
    """Return what a Python has of what the engine needs. Takes seconds where PyTorch is there.

    Raises:
        UserError: the Python cannot be run.
    """
    names = {package.module: package.name for package in PACKAGES}
    printed = run_python(python, ["-c", _INSPECT, json.dumps(names)], CHECK_SECONDS)
    try:
        return Report(**json.loads(printed.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{python or slicers_python()} does not answer as a Python; choose another") from error


def run_python(python: str, arguments: Sequence[str], timeout_seconds: float) -> str:
    """Run a Python, Slicer's own where it is "", with the engine beside it, and return what it prints.

    Raises:
        UserError: it cannot be run, or says an error of its own.
    """
    python = python or slicers_python()
    environment = {**os.environ, **_environment(python)}
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [python, *arguments],
            env={**environment, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows would show a console
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{python} does not run as a Python ({error}); choose another") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        if last.startswith("error: "):  # of the engine's commands, which is meant for people
            raise UserError(last.removeprefix("error: "))
        raise UserError(f"{python} cannot do this ({last}); see what it lacks, or choose another")
    return done.stdout


def _environment(python: str) -> dict[str, str]:
    """Return what must change for a Python that is not Slicer's, which would trip over Slicer's libraries."""
    import slicer.util

    if os.path.realpath(python) in (os.path.realpath(slicers_python()), os.path.realpath(sys.executable)):
        return {}
    if not hasattr(getattr(slicer, "app", None), "startupEnvironment"):
        return {}
    before = slicer.util.startupEnvironment()
    changed = {name: before.get(name, "") for name in os.environ if os.environ[name] != before.get(name)}
    return {**changed, "PYTHONPATH": str(ROOT)}
