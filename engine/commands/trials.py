"""Trainings that stand in a comparison: each is a command of its own, which is printed, and is done once."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.choices import SMALL_BASE
from engine.cli import INTERRUPTED
from engine.errors import Cancelled, UserError
from engine.models.bases import open_base, save_clip
from engine.models.bundle import CARD, read_card
from engine.models.places import is_base
from engine.nets.towers import new_clip
from engine.prompts import MAXIMUM_TOKENS
from engine.segmentation.cluster import connected
from engine.training.run_files import CHECKPOINT

SMALL_TEXT = {"width": 128, "heads": 4, "layers": 4, "context_length": MAXIMUM_TOKENS, "pool_type": "eos"}
SMALL_VISION = {"layers": [2, 2, 2, 2], "width": 32, "head_width": 64, "patch_size": None}


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        folder: of the adapter.
        arguments: of engine.train, without the output.
        epochs: those planned at most, by which a finished training is known; any number when None.
    """

    folder: Path
    arguments: tuple[str, ...]
    epochs: int | None = None

    @property
    def is_done(self) -> bool:
        """The adapter is there and was measured on test images."""
        card = read_card(self.folder) if (self.folder / CARD).is_file() else None
        return bool(card and card.metrics) and self.epochs in (None, card.training["epochs"])

    @property
    def command(self) -> list[str]:
        """What trains it, or goes on where it was stopped."""
        resume = ["--resume"] if (self.folder / "run" / CHECKPOINT).is_file() else []
        return ["-m", "engine.train", *self.arguments, "-o", str(self.folder), *resume]


def train(trials: Sequence[Trial], cluster: str | None = None) -> None:
    """Train what is not trained yet: one after another, or one on each GPU of a Ray cluster.

    Args:
        cluster: see `engine.segmentation.cluster.connected`; none when None.

    Raises:
        UserError: a training failed; the others of a cluster come to their ends before.
    """
    commands = [trial.command for trial in trials if not trial.is_done]
    if cluster and commands:
        _run_on(cluster, commands)
        return
    for command in commands:
        run_command(command)


def run_command(command: Sequence[str]) -> None:
    """Run Python with these words, and print them.

    Raises:
        UserError: it failed.
        Cancelled: it was interrupted.
    """
    print(shlex.join(["python", *command]), flush=True)
    _check(command, subprocess.run([sys.executable, *command]).returncode)


def _check(command: Sequence[str], code: int) -> None:
    if code == INTERRUPTED:
        raise Cancelled
    if code:
        raise UserError(f"{command[1]} ended with code {code}; mend it, and start the comparison again")


def _run_on(cluster: str, commands: Sequence[Sequence[str]]) -> None:
    with connected(cluster) as ray:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        start = ray.remote(_run_there).options(max_retries=0, **share)
        waiting = {start.remote(command, str(Path.cwd())): command for command in commands}
        failed = []
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            command = waiting.pop(done)
            code, errors = ray.get(done)
            print(f"{shlex.join(['python', *command])}: code {code}, {len(waiting)} left {errors}", flush=True)
            failed += [(command, code)] if code else []
        for command, code in failed:
            _check(command, code)


def _run_there(command: Sequence[str], folder: str) -> tuple[int, str]:
    """Run a command in a worker, which sees one GPU alone; return its code, and its last line where it failed."""
    ended = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    return ended.returncode, ended.stderr.strip().splitlines()[-1] if ended.returncode and ended.stderr else ""


def cris_base(chosen: str, other: str, output: Path) -> str:
    """Return the base of cris; a small one is made of random weights in `output`, with the tokenizer of the other
    methods' base."""
    if chosen != SMALL_BASE:
        return chosen
    folder = output / "bases" / "clip-small-resnet"
    if not is_base(folder):
        base = open_base(other)
        tokenizer = base.load_tokenizer()
        text = SMALL_TEXT | {"vocab_size": len(tokenizer), "eos_id": tokenizer.eos_token_id}
        vision = SMALL_VISION | {"image_size": base.side}
        config = {"embed_dim": SMALL_TEXT["width"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        torch.manual_seed(0)
        save_clip(folder, new_clip(config), config, tokenizer)
    return str(folder)
