"""Compare training from kept activations with running the frozen encoder in every epoch, in one run."""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.bases import Base, open_base
from engine.benchmark import device_name, full_size_base, print_figures
from engine.cli import run
from engine.data import open_data_set
from engine.devices import DEVICES, PRECISIONS, choose_device
from engine.model.methods import METHODS
from engine.plan import Plan
from engine.training import Epoch, Trainer

PICTURE_SIDE = 512
WAYS = ("none", "memory", "disk")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine.benchmark_training", description=__doc__)
    methods = [name for name, kind in METHODS.items() if kind.frozen_encoder]
    parser.add_argument("--base", help="name or folder (default: the full-size architecture with random weights)")
    parser.add_argument("--method", choices=methods, default="shallow")
    parser.add_argument(
        "--pictures", type=int, default=32, help=f"each {PICTURE_SIDE}×{PICTURE_SIDE} (default: 32)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="the first, which fills the cache, is told apart")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = open_base(options.base or str(full_size_base(folder / "base")))
        draw_pictures(folder / "pictures", options.pictures)
        epochs = {way: train(base, folder, way, options) for way in WAYS}
    figures = compare(epochs) | {
        "method": options.method,
        "base": options.base or "full size, random weights",
        "pictures": options.pictures,
        "device": device_name(choose_device(options.device)),
        "precision": options.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print_figures(figures)
    print(json.dumps(figures))


def draw_pictures(folder: Path, count: int) -> None:
    """Write pictures of a bright disc on noise, in the MedVLSM layout; all of them for training."""
    for part in ("images", "masks", "anns"):
        (folder / part).mkdir(parents=True)
    rows = []
    grid = np.mgrid[:PICTURE_SIDE, :PICTURE_SIDE]
    for number in range(count):
        random = np.random.default_rng(number)
        center = random.uniform(0.3, 0.7, (2, 1, 1)) * PICTURE_SIDE
        disc = np.linalg.norm(grid - center, axis=0) < random.uniform(0.1, 0.25) * PICTURE_SIDE
        picture = random.integers(0, 90, (PICTURE_SIDE, PICTURE_SIDE, 3), np.uint8)
        picture[disc] += 120
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        names = {"img_name": f"{number}.png", "mask_name": f"{number}.png"}
        rows.append(names | {"prompts": {"p1": "disc"}})
    (folder / "anns" / "train.json").write_text(json.dumps(rows))


def train(base: Base, folder: Path, keep_activations: str, options: argparse.Namespace) -> list[Epoch]:
    """Return the epochs of a training that keeps activations in one of `WAYS`."""
    plan = Plan(method=options.method, epochs=options.epochs, batch_size=options.batch_size, absent_rate=0)
    trainer = Trainer(
        base,
        plan,
        open_data_set(folder / "pictures", "train"),
        None,
        (),
        folder / "checkpoint.safetensors",
        choose_device(options.device),
        options.precision,
        keep_activations,
    )
    trainer.train(lambda done, total: None, lambda epoch: print(keep_activations, epoch, file=sys.stderr))
    return trainer.history


def compare(epochs: dict[str, list[Epoch]]) -> dict:
    """Return seconds an epoch, without the first, of each way, the speed-ups, and how much the losses differ."""
    seconds = {way: statistics.median(e.seconds for e in history[1:]) for way, history in epochs.items()}
    losses = {way: np.array([e.training_loss for e in history]) for way, history in epochs.items()}
    figures = {}
    for way in WAYS:
        figures[f"{way}_first_epoch_seconds"] = round(epochs[way][0].seconds, 2)
        figures[f"{way}_epoch_seconds"] = round(seconds[way], 3)
        if way != "none":
            figures[f"{way}_speedup"] = round(seconds["none"] / seconds[way], 1)
            figures[f"{way}_largest_difference_of_loss"] = float(
                np.abs(losses[way] - losses["none"]).max().round(6)
            )
    return figures


if __name__ == "__main__":
    run(main)
