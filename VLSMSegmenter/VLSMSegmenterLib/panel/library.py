"""The adapters of this computer, looked after by `python -m engine.adapters` in the Python that the engine runs in.

That command is the only one that writes the models folder; what needs torch stays out of Slicer, and no engine need
run. Adapters of a server elsewhere are looked after on its machine, by the same command.
"""

import json
from pathlib import Path

from engine.models.places import HUB
from VLSMSegmenterLib.shared.engines import run_python

SECONDS = 600.0  # a large adapter on a slow disk; the work runs in a thread


def look_at_adapter(python: str, source: str) -> dict:
    """Return name, card and `replaces` of an adapter that could be installed from a folder, a zip file or the Hub.

    Raises:
        UserError: it is damaged or not safe; the Python lacks packages, or does not run, as in all functions here.
    """
    return json.loads(_run(python, "install", _found(source), "--dry-run", "--json"))


def install_adapter(python: str, source: str, replace: bool) -> str:
    """Install an adapter; return what was done, in words."""
    return _run(python, "install", _found(source), *(["--overwrite"] if replace else []))


def verify_adapters(python: str, names: list[str]) -> str:
    """Compare the files of adapters, all of them for no names, with their cards; return what was seen, in words.

    Raises:
        UserError: they differ.
    """
    return _run(python, "verify", *names)


def remove_adapter(python: str, name: str) -> str:
    """Remove an adapter, once the user has agreed; return what was done, in words."""
    return _run(python, "remove", name, "--yes")


def _found(source: str) -> str:
    """Return a name on the Hub as it is, and a path as another process finds it."""
    return source if source.startswith(HUB) else str(Path(source).resolve())


def _run(python: str, *arguments: str) -> str:
    return run_python(python, ["-m", "engine.adapters", *arguments], SECONDS).strip()
