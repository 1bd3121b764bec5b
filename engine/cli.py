"""What the commands share: exit codes, numbers, progress and what they log."""

import argparse
import logging
import os
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from engine.errors import Cancelled, UserError

USER_ERROR, INTERRUPTED = 2, 130
PREFIX = "vlsm-"  # of the commands' scripts
LOG_EVERY_SECONDS = 10.0
ESTIMATE_SECONDS = 300.0  # over which the speed is taken for the time left; a step may take many seconds


def run(main: Callable[[], None]) -> None:
    """Run a command's main; say errors in one line. The process ends with code 2 for what the user can mend and
    130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except (OSError, MemoryError) as error:
        print(f"error: {_reason(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, Cancelled):
        _stop()


def script() -> None:
    """Run the command that a script is named after: vlsm-segment is `python -m engine.segment`."""
    runpy.run_module(f"engine.{_script_name().removeprefix(PREFIX)}", run_name="__main__")


def called(command: str) -> str:
    """Return how a command was called, for its help: vlsm-segment, or python -m engine.segment."""
    name = f"{PREFIX}{command}"
    return name if _script_name() == name else f"python -m engine.{command}"


def _script_name() -> str:
    return Path(sys.argv[0]).stem


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory; close programs, or take a smaller scan"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _stop() -> None:
    """End the process at once: all was cleaned up on the way here, and unloading PyTorch takes a second more."""
    print("stopped", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _stop()
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _uncaught  # Ctrl-C while a command still loads its libraries


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let work finish its step after Ctrl-C; a second Ctrl-C ends it at once.

    Yields:
        a function that says whether Ctrl-C was pressed.
    """
    pressed = False

    def handle(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("finishing this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def whole_number(text: str) -> int:
    """Return the number that an option was given; for `type` of argparse."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("give a whole number of at least 1")
    return int(text)


def log_what_names_nobody() -> None:
    """Log warnings of this project and of its HTTP server alone: those of others may quote a patient's file."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.name.split(".")[0] in ("engine", "uvicorn"))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", handlers=[handler])
    warnings.simplefilter("ignore")


def _line(task: Task) -> str:
    left = "" if task.time_remaining is None else f"about {task.time_remaining:.0f} s left "
    return f"{task.description} {task.completed:g} / {task.total:g} {left}{task.fields['note']}".rstrip()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show done / total, the time gone and the time left on standard error: a bar on a terminal, otherwise a
    line at the start and then every ten seconds.

    Yields:
        update(done=None, **fields): say how much is done, or that one more is; the fields `description`,
        `total` and `note` may change on the way.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    console = Console(stderr=True)
    settings = {"transient": True, "speed_estimate_period": ESTIMATE_SECONDS, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **settings) as progress:
        task_id = progress.add_task(description, total=total, note="")
        next_line = 0.0

        def update(done: int | None = None, **fields: object) -> None:
            nonlocal next_line
            progress.update(task_id, completed=done, advance=1 if done is None else None, **fields)
            if not console.is_terminal and time.monotonic() >= next_line:
                print(_line(progress.tasks[0]), file=sys.stderr)
                next_line = time.monotonic() + LOG_EVERY_SECONDS

        yield update
