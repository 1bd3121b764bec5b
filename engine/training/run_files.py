"""What lies in the folder of a run of training, and how far it says the run is. Needs no torch."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path

PLAN, LOG, CURVES, CHECKPOINT = "plan.yaml", "log.csv", "curves.png", "checkpoint.safetensors"
SCORES, PROTOCOL_SCORES = (
    "scores.csv",
    "scores-by-protocol.csv",
)  # of each test image: by the product's rules, by theirs


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epochs_done, epochs: done, and planned at most: it stops earlier when validation no longer improves.
        training_loss: of the last epoch.
        best_dice: of all epochs, on the validation split.
        seconds_left: at most.
    """

    epochs_done: int
    epochs: int
    training_loss: float
    best_dice: float
    seconds_left: float


def read_progress(folder: Path, epochs: int) -> Progress | None:
    """Return what the log of a run says, whose epochs are `epochs` at most; None before its first epoch is over."""
    try:
        with (folder / LOG).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        written = (folder / LOG).stat().st_mtime
    except FileNotFoundError:
        return None
    seconds = sum(float(row["seconds"]) for row in rows) / len(rows) * (epochs - len(rows))
    dice = max(float(row["validation_dice"]) for row in rows)
    left = max(0.0, seconds - (time.time() - written))
    return Progress(len(rows), epochs, float(rows[-1]["training_loss"]), dice, left)
