"""What a run of training leaves behind beside its bundle: the plan, the environment, a log and curves."""

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.files import replacing, write_csv, write_text
from engine.training.plan import Plan
from engine.training.run_files import CURVES, LOG, PLAN
from engine.training.trainer import Epoch
from engine.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "monai", "numpy", "SimpleITK")
TENSORBOARD = "tensorboard"


def write_start(folder: Path, plan: Plan, data: Path, base: str, device: str, processes: int) -> None:
    """Write the resolved plan, and on what the run runs."""
    write_text(folder / PLAN, yaml.safe_dump(asdict(plan), sort_keys=False))
    environment = {
        "engine": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "data": data.resolve().name,  # a path may name a patient
        "base": base,
    }
    write_text(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def write_log(folder: Path, history: Sequence[Epoch]) -> None:
    """Write all epochs so far as a table and as curves."""
    write_csv(folder / LOG, history)
    with replacing(folder / CURVES) as temporary:
        _draw_curves(temporary, history)


@contextmanager
def tensorboard(folder: Path, epochs_done: int) -> Iterator[Callable[[Epoch], None]]:
    """Log epochs for TensorBoard, after those that an interrupted run has done.

    Yields:
        a function to call with each epoch.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to load

    with SummaryWriter(str(folder / TENSORBOARD), purge_step=epochs_done + 1) as writer:

        def log(epoch: Epoch) -> None:
            writer.add_scalars(
                "loss", {"training": epoch.training_loss, "validation": epoch.validation_loss}, epoch.number
            )
            writer.add_scalar("Dice/validation", epoch.validation_dice, epoch.number)
            writer.add_scalar("learning rate", epoch.learning_rate, epoch.number)
            writer.flush()

        yield log


def _draw_curves(path: Path, history: Sequence[Epoch]) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    numbers = [epoch.number for epoch in history]
    losses, scores = figure.subplots(1, 2)
    losses.plot(numbers, [epoch.training_loss for epoch in history], label="training")
    losses.plot(numbers, [epoch.validation_loss for epoch in history], label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend(frameon=False)
    scores.plot(numbers, [epoch.validation_dice for epoch in history], color="C2")
    best = [epoch for epoch in history if epoch.best][-1:]
    scores.plot([e.number for e in best], [e.validation_dice for e in best], "o", color="C2", label="best")
    scores.set(xlabel="epoch", ylabel="Dice, validation", ylim=(0, 1))
    scores.legend(frameon=False)
    for axes in (losses, scores):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    canvas.print_png(str(path))
