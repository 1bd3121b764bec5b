"""Kill processes while they write, and see what they leave.

Each process writes two versions of one file, or bundle, in turns until it is killed at a random moment.
`PYTHONPATH=. python Testing/killed_writers.py FOLDER KILLS` does it in a folder that exists.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from torch import nn

from engine import files
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import write_segments
from engine.models.bundle import AdapterCard, read_card, save_bundle, weights_of
from engine.training.checkpoints import load_checkpoint, save_checkpoint

LONGEST_SECONDS = 0.05
VERSIONS = (0, 1)
SHAPE = (30, 64, 64)


class Segmentation:
    def __init__(self, folder: Path):
        self._path = folder / "out.seg.nrrd"
        self._volume = Volume(np.zeros(SHAPE, np.uint8))
        self._masks = [np.random.default_rng(version).random(SHAPE) < 0.3 for version in VERSIONS]

    def write(self, version: int) -> None:
        write_segments(self._path, [Segment(f"v{version}", self._masks[version], (1, 0, 0))], self._volume)

    def read(self) -> int:
        image = sitk.ReadImage(str(self._path))
        version = int(image.GetMetaData("Segment0_Name")[1:])
        assert np.array_equal(sitk.GetArrayFromImage(image) > 0, self._masks[version])
        return version


class Report:
    def __init__(self, folder: Path):
        self._path = folder / "out.json"

    def write(self, version: int) -> None:
        files.write_text(self._path, json.dumps([version] * 50_000))

    def read(self) -> int:
        (version,) = set(files.read_json(self._path))
        return version


class Bundle:
    def __init__(self, folder: Path):
        self._folder, self._net = folder / "adapter", nn.Linear(200, 500)

    def write(self, version: int) -> None:
        nn.init.constant_(self._net.weight, version)
        save_bundle(self._folder, self._net, AdapterCard(f"v{version}", "dense", "VL", 8, "mini", "0" * 64, []))

    def read(self) -> int:
        card = read_card(self._folder)
        (version,) = load_file(weights_of(self._folder, card))["weight"].unique().tolist()
        assert card.name == f"v{version:g}"
        return int(version)


class Checkpoint:
    def __init__(self, folder: Path):
        self._path = folder / "checkpoint.safetensors"
        self._parameters = {"weight": nn.Parameter(torch.zeros(200, 500))}
        self._optimizer = torch.optim.AdamW(self._parameters.values())

    def write(self, version: int) -> None:
        nn.init.constant_(self._parameters["weight"], version)
        save_checkpoint(self._path, self._parameters, self._optimizer, {"version": version})

    def read(self) -> int:
        state, _ = load_checkpoint(self._path, self._parameters, self._optimizer)
        assert (self._parameters["weight"] == state["version"]).all()
        return state["version"]


def write_until_killed(writer, started: int) -> None:
    files._looked_through.clear()  # as a new process
    while True:
        for version in VERSIONS:
            writer.write(version)
            os.write(started, b"x")


def kill_one(writer, delay: float) -> None:
    """Start a process, let it write once, and kill it a little later."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            write_until_killed(writer, writing)
        finally:
            traceback.print_exc()
            os._exit(1)  # never reached by one that writes
    os.close(writing)
    written = os.read(reading, 1)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(reading)
    assert written, "the process ended by itself"


def main() -> None:
    """Print what was found as JSON: for each kind the versions that were read, and the files left behind."""
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
    torch.set_num_threads(1)
    told = {}
    for kind in (Segmentation, Report, Bundle, Checkpoint):
        place = folder / kind.__name__
        place.mkdir()
        writer, found, cut_off = kind(place), Counter(), 0
        for _ in range(kills):
            kill_one(writer, chance.random() * LONGEST_SECONDS)
            found[f"version {writer.read()}"] += 1
            cut_off += any(place.rglob(f"{files.TEMPORARY}*"))
        files._looked_through.clear()
        writer.write(0)
        names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
        told[kind.__name__] = {"found": found, "cut off": cut_off, "files": names}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
