"""Measure one batch in one process, and on a Ray cluster of one and of two workers (`python scaling.py 16`).

A worker has one thread, so that two fill two cores. Studies a second are counted from the first finished one to the
last, without what starting takes; processor seconds are those of all processes together.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (48, 96, 96)
WAYS = {
    "one process, 1 thread": (1, []),
    "one process, 2 threads": (2, []),
    "cluster, 1 worker": (1, ["--cluster", "local", "--workers", "1"]),
    "cluster, 2 workers": (1, ["--cluster", "local", "--workers", "2"]),
}


def make_studies(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        voxels = np.random.default_rng(number).normal(100, 20, SHAPE).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), folder / f"study-{number:03d}.nrrd")


def measure(studies: Path, output: Path, threads: int, more: list[str]) -> tuple[float, float, float]:
    """Return seconds in all, seconds from the first finished study to the last, and processor seconds."""
    output.mkdir()
    words = ["engine.segment", studies, "-p", "brain", "-o", output, "--device", "cpu", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    used: dict[int, float] = {}
    while process.poll() is None:
        family = [psutil.Process(process.pid)]
        try:
            for member in [*family, *family[0].children(recursive=True)]:
                times = member.cpu_times()
                used[member.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    written = sorted(path.stat().st_mtime for path in output.glob("study-*.json"))
    return seconds, written[-1] - written[0], sum(used.values())


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    print(
        f"{count} studies of 96 × 96 × 48 voxels, base mini, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as name:
        make_studies(Path(name) / "studies", count)
        for number, (way, (threads, more)) in enumerate(WAYS.items()):
            output = Path(name) / f"out-{number}"
            whole, between, processor = measure(Path(name) / "studies", output, threads, more)
            rate = (count - 1) / between
            print(
                f"{way}: {whole:.1f} s, {rate:.2f} studies a second, {processor:.1f} s of the processor", flush=True
            )


if __name__ == "__main__":
    main()
