"""Trainings that stand in a comparison: each is a command of its own, which is printed, and is done once."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli import INTERRUPTED
from engine.errors import Cancelled, UserError
from engine.models.bundle import CARD, read_card
from engine.segmentation.cluster import connected
from engine.training.run_files import CHECKPOINT


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
        waiting = {start.remote(command, os.getcwd()): command for command in commands}
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
