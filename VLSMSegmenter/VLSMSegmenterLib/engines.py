"""Where the engine runs: in a process of this machine, or on a server elsewhere. Neither blocks Slicer."""

import json
import os
import shutil
import subprocess
import sys
import threading
from typing import IO

from engine.client import Client
from engine.errors import UserError
from engine.launching import ROOT, Server, start_command

# Packages that the engine's process imports: the name to import and the name to install.
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "SimpleITK": "SimpleITK",
    "pydicom": "pydicom",
    "PIL": "pillow",
    "rich": "rich",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "psutil": "psutil",
}
CHECK_SECONDS = 60
START_SECONDS = 600  # on a busy machine; who does not want to wait cancels


class LocalEngine:
    """A process of this machine, started when it is first needed and warm from then on.

    Args:
        python: that has the engine's packages; Slicer's own when it is empty.
        arguments: further ones of `python -m engine.serve`.
    """

    def __init__(self, python: str = "", arguments: tuple[str, ...] = ()):
        self.python = python or slicers_python()
        self._server = Server(self.python, arguments, _environment(self.python))
        self._client: Client | None = None
        self._starting = threading.Lock()

    def client(self) -> Client:
        """Return a client, starting the engine where it does not run. Takes seconds: call it in a thread.

        Raises:
            UserError: it does not start.
        """
        with self._starting:
            if self._client is None or not self._server.is_alive:
                self._client = self._server.start(START_SECONDS)
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


def missing_packages(python: str = "") -> list[str]:
    """Return what the engine needs and a Python lacks, by the names under which it is installed.

    Nothing is imported, so that it takes no long. Raises:
        UserError: the Python cannot be run.
    """
    python = python or slicers_python()
    code = (
        "import importlib.util as u, json, sys;"
        "print(json.dumps([n for n in json.loads(sys.argv[1]) if u.find_spec(n) is None]))"
    )
    try:
        done = subprocess.run(
            [python, "-c", code, json.dumps(list(PACKAGES))],
            env={**os.environ, **_environment(python)},
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=True,
        )
        absent = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise UserError(f"{python} does not run as a Python ({error}); choose another") from error
    return [PACKAGES[name] for name in absent]


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
