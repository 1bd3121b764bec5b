"""The process that meets changed inputs, one after another, and says what came of each.

It may hang, be killed or die of a fault in a library; `fuzz.py` then starts another one.
"""

import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from engine.errors import UserError
from fuzzing.kinds import Kind, all_kinds
from fuzzing.requests import request_kind

MIB = 1 << 20
MOST_MIB = 300  # that one input of at most some 40 kB may take
ADDRESS_SPACE = 2 << 30  # beyond what is taken at the start; what asks for more fails
LONGEST_MESSAGE = 1010
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Worker:
    """Makes and uses inputs in a folder of its own: `input` is read, `target` may be written, and
    `temporary` if nothing stays in it; nothing else.

    Args:
        place: an empty folder.
        seed: with an input's number, it decides everything.
    """

    def __init__(self, place: Path, seed: int):
        self.place, self._seed, self._written_outside = place, seed, ""
        for name in ("seeds", "input", "target", "temporary", "outside"):
            (place / name).mkdir(parents=True)
        tempfile.tempdir = str(place / "temporary")
        self._by_name = self._all_kinds()
        self.kinds, self._using = list(self._by_name), False
        sys.addaudithook(self._watch)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def _all_kinds(self) -> dict[str, Kind]:
        kinds = all_kinds(self.place / "seeds", self.place / "target")
        return kinds | {"server request": request_kind(self.place / "input")}

    def meet(self, number: int) -> dict:
        """Make the input of a number, use it, and say what came of it."""
        name = self.kinds[number % len(self.kinds)]
        kind = self._by_name[name]
        for folder in ("input", "target"):
            _empty(self.place / folder)
        kind.make(np.random.default_rng((self._seed, number)), self.place / "input")
        before, self._written_outside = _hashes(self.place / "input"), ""
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        start_kib, started = _status("VmRSS"), time.monotonic()
        outcome, detail = self._use(kind)
        seconds, mib = time.monotonic() - started, (_status("VmHWM") - start_kib) / 1024
        if mib > MOST_MIB:
            outcome, detail = "memory", f"{mib:.0f} MiB"
        left = [path for name in ("outside", "temporary") for path in (self.place / name).iterdir()]
        if self._written_outside or left:
            outcome, detail = "written outside", self._written_outside or str(left[0])
        if _hashes(self.place / "input") != before:
            outcome, detail = "input changed", ""
        return {
            "number": number,
            "kind": name,
            "outcome": outcome,
            "detail": detail,
            "seconds": seconds,
            "mib": mib,
        }

    def _use(self, kind: Kind) -> tuple[str, str]:
        self._using = True
        try:
            kind.use(self.place / "input")
            return "taken", ""
        except UserError as error:
            message = str(error)
            clear = message and len(message) < LONGEST_MESSAGE and "Traceback" not in message
            return ("refused" if clear else "unclear"), message[:300]
        except Exception as error:
            places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            return "exception", f"{type(error).__name__}: {str(error)[:150]} at {' '.join(places[-6:])}"
        finally:
            self._using = False

    def _watch(self, event: str, arguments: tuple) -> None:
        """Note what Python code writes elsewhere than in the target; an audit hook of the interpreter."""
        if not self._using:
            return
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITING:
            paths = arguments[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = arguments[1:2]
        elif event in ("os.mkdir", "os.remove", "os.truncate"):
            paths = arguments[:1]
        else:
            return
        for path in map(os.fsdecode, paths):
            place = Path(path).resolve()
            allowed = any(place.is_relative_to(self.place / name) for name in ("target", "temporary"))
            if Path(path).is_absolute() and not allowed and path != os.devnull:
                self._written_outside = f"{event} {path}"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _hashes(folder: Path) -> dict[str, bytes]:
    return {str(p): hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


def _status(field: str) -> int:
    """Return a figure of this process in KiB, as the kernel keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Meet the inputs START, START + 1, … before STOP; one line of JSON for each on standard output."""
    place, seed, start, stop = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    worker = Worker(place.resolve(), seed)
    print(json.dumps({"kinds": worker.kinds}), file=answers, flush=True)
    for number in range(start, stop):
        print(json.dumps(worker.meet(number)), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # the server's thread still waits for requests


if __name__ == "__main__":
    main()
