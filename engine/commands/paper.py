"""Repeat the paper's Table 1: say what will run and how long, train what is not trained yet, write its page."""

import argparse
import gc
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch

from engine.choices import SMALL_BASE
from engine.commands.paper_page import Cell, write_page
from engine.commands.trials import Trial, cris_base, train
from engine.data import is_data_set, open_data_set
from engine.errors import UserError
from engine.evaluation import paper
from engine.models.bases import open_base
from engine.models.bundle import find_adapter
from engine.segmentation.devices import choose_device
from engine.speed.clock import device_name
from engine.speed.training import seconds_of_step
from engine.tables import markdown_table
from engine.training.plan import Plan
from engine.training.protocols import base_of, settings

SEEDS = (41, 42, 43)
ADAPTERS = ("shallow", "dense")  # which have placements
START = settings("paper", "cris")["start"]
LIKELY_EPOCHS = 60  # assumed for the estimate: stopped 20 epochs after the best
FORWARD_SHARE = 1 / 3  # of a step's time, assumed: a step goes forward and about twice as much backward
ESTIMATE = """An estimate for one {0}: {1:.2g} hours if trainings end after {2} epochs (an assumption), at most
{3:.2g} hours after {4}. It is steps × the seconds of a warm step that was measured here, with validation as a
third of a step for as many images (an assumption); reading files, starting and testing come on top."""


def run(options: argparse.Namespace, flags: list[str]) -> None:
    """Raises:
    UserError: there is no set at all, or a training failed.
    """
    if len(options.data) > 1:
        raise UserError("--paper takes one folder that holds the sets; name it with --data, and choose with --sets")
    root = options.data[0]
    names = options.sets or list(paper.SETS)
    there = [name for name in names if is_data_set(root / name)]
    missing = [name for name in names if name not in there]
    if not there:
        raise UserError(f"{root} holds none of {', '.join(names)}; put them there in MedVLSM's layout")
    device = choose_device()
    remarks = _remarks(options, flags, device, missing, root)
    cells = list(_cells(options, flags, [root / name for name in there], device))
    _say_plan(cells, options, _batch_size(flags), device, remarks)
    if options.estimate:
        return
    for name in there:
        train([t for cell in cells if cell.data.name == name for t in cell.trials.values()], options.cluster)
        done = [cell for cell in cells if all(trial.is_done for trial in cell.trials.values())]
        write_page(options.output, done, remarks)
    print(f"wrote {options.output / 'table1.md'}")


def _cells(
    options: argparse.Namespace, flags: list[str], folders: list[Path], device: torch.device
) -> Iterator[Cell]:
    methods = options.methods or paper.METHODS
    for data, method in product(folders, methods):
        base = _base(options, method)
        for placement in options.placements if method in ADAPTERS else [""]:
            folder = options.output / data.name / f"{method}{'-' if placement else ''}{placement}"
            words = ["--data", data, "--method", method, "--base", base, "--protocol", "paper", "--keep-overlap"]
            words += ["--placement", placement] if placement else []
            words += ["--subset", options.subset] if options.subset else []
            words += ["--epochs", options.epochs] if options.epochs else []
            words += ["--precision", "auto"] if device.type == "cpu" else []
            words += ["--start", ""] if method == "cris" and not _has_start() else []
            trials = {}
            for seed in options.seeds or SEEDS:
                own = tuple(map(str, [*words, "--seed", seed, *flags]))
                trials[seed] = Trial(folder / f"seed-{seed}", own, options.epochs)
            yield Cell(data, method, placement, base, trials)


def _base(options: argparse.Namespace, method: str) -> str:
    if method != "cris":
        return options.base or base_of("paper", method)
    if options.base is None and options.cris_base == SMALL_BASE:
        return base_of("paper", method)
    return cris_base(options.cris_base, options.base or "mini", options.output)


def _has_start() -> bool:
    try:
        find_adapter(START)
    except UserError:
        return False
    return True


def _remarks(
    options: argparse.Namespace, flags: list[str], device: torch.device, missing: list[str], root: Path
) -> list[str]:
    """Return what differs from the paper's table in this run."""
    remarks = [f"Left out, as {root.name} has no such folder: {', '.join(missing)}."] if missing else []
    methods = options.methods or paper.METHODS
    if "cris" in methods and not _has_start():
        remarks.append(
            "CRIS starts from CLIP alone: its authors' weights for RefCOCO are not here; get cris_best.pth, then "
            f"`python -m engine.adapters import cris_best.pth --base clip-rn50 --name {START}`."
        )
    rehearsal = [f"base `{Path(options.base).name}`"] if options.base else []
    rehearsal += [f"{options.subset} images of each split"] if options.subset else []
    rehearsal += [f"epochs: at most {options.epochs}"] if options.epochs else []
    rehearsal += [f"`{' '.join(flags)}`"] if flags else []
    if rehearsal:
        remarks.append(f"**A rehearsal, not the paper's table:** {', '.join(rehearsal)}.")
    if device.type == "cpu":
        remarks.append("Trained on a CPU, which has no fp16: its own precision is taken.")
    return remarks


def _say_plan(
    cells: Sequence[Cell], options: argparse.Namespace, size: int, device: torch.device, remarks: list[str]
) -> None:
    """Print what will run, and estimate how long from a step of each method that is measured here."""
    print("\n".join(remarks))
    epochs = options.epochs or Plan().epochs
    seconds: dict[tuple[str, str], float] = {}
    rows, likely, most = [], 0.0, 0.0
    for cell in cells:
        left = sum(not trial.is_done for trial in cell.trials.values())
        if left and (cell.method, cell.placement) not in seconds:
            seconds[cell.method, cell.placement] = _measure(cell, size, device)
        step = seconds.get((cell.method, cell.placement), 0.0)
        steps = _steps(cell, size, options.subset)
        rows.append([cell.data.name, cell.name, cell.base, left, f"{steps:.1f}", f"{step:.2f}" if step else ""])
        most += left * epochs * steps * step
        likely += left * min(epochs, LIKELY_EPOCHS) * steps * step
    print(markdown_table(("set", "method", "base", "trainings left", "steps an epoch", "seconds a step"), rows))
    gc.collect()
    torch.cuda.empty_cache()  # the trainings are processes of their own
    hours = likely / 3600, min(epochs, LIKELY_EPOCHS), most / 3600, epochs
    print(ESTIMATE.format(device_name(device), *hours), flush=True)


def _batch_size(flags: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--batch-size", type=int, default=Plan().batch_size)
    return parser.parse_known_args(flags)[0].batch_size


def _steps(cell: Cell, size: int, subset: int | None) -> float:
    """Return the steps of an epoch, with what validation costs."""
    counts = {}
    for split in ("train", "val"):
        count = len(open_data_set(cell.data, split).annotations)
        counts[split] = min(count, subset) if subset else count
    return -(-counts["train"] // size) + FORWARD_SHARE * counts["val"] / size


def _measure(cell: Cell, size: int, device: torch.device) -> float:
    chosen = settings("paper", cell.method) | {"start": None, "batch_size": size}
    if device.type == "cpu":
        chosen["precision"] = "auto"
    plan = Plan(method=cell.method, placement=cell.placement or None, **chosen)
    with tempfile.TemporaryDirectory() as folder:
        return seconds_of_step(open_base(cell.base), plan, cell.data, Path(folder), device)
