"""Measure how long commands take to answer --help, and a server to give its first mask (`python start_up.py`).

Seconds on the clock, and in brackets those of the processor, which other work on the machine changes little. The
folder of another version of this project, as an argument, is measured in turn with this one.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.client import Client  # noqa: E402
from engine.client.launching import Server  # noqa: E402

SHAPE = (30, 64, 64)  # a little larger than the crops around the hippocampus that the adapter is for


def commands(root: Path) -> list[str]:
    files = (root / "engine").glob("*.py")
    return sorted(path.stem for path in files if '__name__ == "__main__"' in path.read_text("utf-8"))


def help_seconds(root: Path, command: str) -> tuple[float, float]:
    """Return the seconds of a command on the clock and on the processor."""
    words = [sys.executable, "-m", f"engine.{command}", "--help"]
    before, started = os.times(), time.perf_counter()
    subprocess.run(words, cwd=root, capture_output=True, check=True)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, processor


def medians(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.median(values) for values in zip(*rows, strict=True))


def first_mask_seconds(client: Client, seed: int, adapter: str | None) -> tuple[float, float]:
    """Return the seconds from voxels to a mask of a new volume, and those of a further prompt on it."""
    voxels = np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)
    started = time.perf_counter()
    volume = client.put_volume(voxels)
    client.segment(volume, ["anterior hippocampus"], adapter)[0].mask()
    first = time.perf_counter() - started
    client.segment(volume, ["posterior hippocampus"], adapter)[0].mask()
    return first, time.perf_counter() - started - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, nargs="?", help="another version, for comparison")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is printed")
    options = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    roots = [ROOT, *filter(None, [options.other])]
    for command in commands(ROOT):
        seconds = {root: [] for root in roots if command in commands(root)}
        for _ in range(options.repeats):
            for root, values in seconds.items():
                values.append(help_seconds(root, command))
        texts = ("{:.2f} ({:.2f}) s".format(*medians(rows)) for rows in seconds.values())
        print(f"{command} --help:", *texts, flush=True)
    started = time.perf_counter()
    with Server(arguments=["--device", "cpu"]) as server:
        client = server.start()
        print(f"server ready after {time.perf_counter() - started:.2f} s")
        for adapter in (None, "hippocampus"):
            cold, _ = first_mask_seconds(client, 0, adapter)
            repeats = range(1, options.repeats + 1)
            first, further = medians(first_mask_seconds(client, seed, adapter) for seed in repeats)
            print(
                f"64 × 64 × 30 voxels, {adapter or 'mini alone'}: {cold:.2f} s while the model is loaded, then "
                f"{first:.2f} s for the first mask of a volume and {further:.2f} s for a further prompt"
            )


if __name__ == "__main__":
    main()
