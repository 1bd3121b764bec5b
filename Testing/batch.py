"""Segment many small studies of which some are faulty, kill it in the middle, and go on.

Every good study must be done, every faulty one be listed with its reason, and the end be that of a run that nobody
killed. `PYTHONPATH=. python Testing/batch.py 200` takes 200 studies.
"""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import ROOT, ball, make_adapter, make_base

SHAPE = (2, 12, 14)
FAULTS = {  # every eighth study is faulty, in one of these ways after another
    "cut off": "ends before its last voxel",
    "no image": "cannot be read",
    "one value": "nothing to segment",
    "not a number": "cannot be read|NaN or infinite",
    "promises too much": "ends before its last voxel",
    "empty": "cannot be read",
}
EVERY = 8


def make_studies(folder: Path, count: int) -> dict[str, str]:
    """Write `count` studies; return the faulty ones' names with the fault of each."""
    folder.mkdir()
    faulty = {}
    for number in range(count):
        name = f"study-{number:03d}"
        fault = list(FAULTS)[number // EVERY % len(FAULTS)] if number % EVERY == 3 else ""
        voxels = np.random.default_rng(number).normal(100, 10, SHAPE).astype(np.float32)
        voxels[ball(SHAPE, (1, 6, 7), 3)] += 200
        if fault == "one value":
            voxels[:] = 7
        if fault == "not a number":
            voxels[:] = np.inf
        path = folder / f"{name}.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(voxels), path)
        content = path.read_bytes()
        if fault == "cut off":
            path.write_bytes(content[:-100])
        if fault == "no image":
            path.write_text("these are not the voxels you are looking for")
        if fault == "promises too much":
            path.write_bytes(content.replace(b"sizes: 14 12 2", b"sizes: 1400 12000 20000"))
        if fault == "empty":
            path.write_bytes(b"")
        if fault:
            faulty[name] = fault
    return faulty


def command(studies: Path, adapter: Path, output: Path) -> list[str]:
    words = ["engine.segment", studies, "-p", "brain", "-a", adapter, "-o", output, "--device", "cpu", "--resume"]
    return [sys.executable, "-m", *map(str, words)]


def kill_after(words: list[str], wrote: int) -> None:
    """Start a command, and kill it with SIGKILL once it has said so many times that it wrote something."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        wrote -= line.startswith(b"wrote ")
        if not wrote:
            time.sleep(0.01)  # into the next one
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def results(output: Path) -> dict[str, bytes]:
    """Return the voxels of every segmentation by its name, once all files of the folder are accounted for."""
    segmentations = {
        p.name: sitk.GetArrayFromImage(sitk.ReadImage(str(p))).tobytes() for p in output.glob("*.nrrd")
    }
    expected = {f"{name.split('.')[0]}{suffix}" for name in segmentations for suffix in (".seg.nrrd", ".json")}
    assert {path.name for path in output.iterdir()} == expected | {"summary.csv", "segments.csv"}
    return segmentations


def summary(output: Path) -> list[dict[str, str]]:
    with (output / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    count, started = int(sys.argv[1]), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        adapter = make_adapter(place / "adapter", make_base(place / "base", seed=0))
        faulty = make_studies(place / "studies", count)
        for output in ("whole", "killed"):
            (place / output).mkdir()
        whole = subprocess.run(command(place / "studies", adapter, place / "whole"), cwd=ROOT, capture_output=True)
        kill_after(command(place / "studies", adapter, place / "killed"), count // 2)
        again = subprocess.run(command(place / "studies", adapter, place / "killed"), cwd=ROOT, capture_output=True)
        assert whole.returncode == again.returncode == 2, whole.stderr[-500:]
        assert results(place / "killed") == results(place / "whole")
        rows = summary(place / "whole")
        strip = [(row["study"], row["state"], row["reason"]) for row in rows]
        assert strip == [(r["study"], r["state"], r["reason"]) for r in summary(place / "killed")]
        failed = [row["study"] for row in rows if row["state"] == "failed"]
        assert failed == sorted(faulty)
        print(
            f"{count} studies: {count - len(failed)} done, {len(failed)} faulty ones listed; killed half-way and "
            f"resumed to the same end; {time.monotonic() - started:.0f} s"
        )


if __name__ == "__main__":
    main()
