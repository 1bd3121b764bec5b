"""Train the methods that are not trained yet, one command after another, and write their table."""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from engine.choices import BASE_ALONE
from engine.commands import paper
from engine.commands.trials import Trial, cris_base, run_command, train
from engine.errors import UserError
from engine.evaluation.measuring import ALL
from engine.files import check_folder, write_text
from engine.models.bundle import QUESTIONS, read_card
from engine.tables import markdown_table
from engine.training.run_files import LOG

COLUMNS = ("method", "base", "trained parameters", "Dice", "95 % interval", "IoU", "HD95", "seconds an epoch")
SYSTEMS = ("shallow", "dense", "telescopic", "lora", "decoder", "full", "san", "cris")
EPOCHS = 6
FIGURES = {"dice": 3, "iou": 3, "hd95": 1}  # with digits
NOTE = """Test split, plain class prompt, means over all cases at the original resolution; HD95 over those in which
both masks have a voxel, in mm (in pixels for pictures). Seconds are those of the fastest epoch, with validation;
`none` is the base alone. Of several seeds: means ± standard deviations."""


def run(options: argparse.Namespace, flags: list[str]) -> None:
    check_folder(options.output)
    if options.paper:
        paper.run(options, flags)
        return
    options.base, options.epochs = options.base or "mini", EPOCHS if options.epochs is None else options.epochs
    tables, figures = [], {}
    for data in options.data:
        rows = {method: _row(data, method, options, flags) for method in options.methods or (BASE_ALONE, *SYSTEMS)}
        tables.append(f"## {data.name}\n\n{_table(rows)}")
        figures[data.name] = rows
        write_text(options.output / "comparison.md", "\n\n".join([*tables, NOTE]) + "\n")
        write_text(options.output / "comparison.json", json.dumps(figures, indent=1) + "\n")
    print("\n\n".join([*tables, NOTE]))


def _row(data: Path, method: str, options: argparse.Namespace, flags: list[str]) -> dict:
    """Return the figures of one method, training it where that was not done yet."""
    folder = options.output / data.name / method
    if method == BASE_ALONE:
        return _base_alone(data, folder, options.base)
    base = cris_base(options.cris_base, options.base, options.output) if method == "cris" else options.base
    common = ["--data", data, "--method", method, "--base", base, "--epochs", options.epochs, *flags]
    trials = []
    for seed in options.seeds or [None]:
        own, place = ([], folder) if seed is None else (["--seed", seed], folder / f"seed-{seed}")
        trials.append(Trial(place, tuple(map(str, [*common, *own])), options.epochs))
    train(trials, options.cluster)
    return _over_seeds([_figures(trial.folder) for trial in trials])


def _base_alone(data: Path, folder: Path, base: str) -> dict:
    summary = folder / "summary.json"
    if not summary.is_file():
        words = ["--data", data, "--adapter", BASE_ALONE, "--base", base, "-o", folder]
        run_command(["-m", "engine.evaluate", *map(str, words)])
    (adapter,) = json.loads(summary.read_text(encoding="utf-8"))["adapters"].values()
    return {"base": base, "structures": adapter["prompts"]["plain"]}


def _figures(folder: Path) -> dict:
    card = read_card(folder)
    structures = next(structures for name, structures in card.metrics.items() if name.endswith(QUESTIONS["plain"]))
    with (folder / "run" / LOG).open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return {
        "base": card.base,
        "parameters": card.training["parameters"],
        "seconds_per_epoch": round(min(seconds), 1),
        "structures": structures,
        "training": card.training,
    }


def _over_seeds(trials: Sequence[dict]) -> dict:
    """Return the figures of one training; of several, those of the first with means and spreads over all."""
    if len(trials) == 1:
        return trials[0]
    over_all = [_over_all(trial["structures"], "a seed") for trial in trials]
    figures = {name: [row[name] for row in over_all if row[name] is not None] for name in FIGURES}
    return trials[0] | {
        "seeds": [trial["training"]["seed"] for trial in trials],
        "mean": {name: mean(values) if values else None for name, values in figures.items()},
        "spread": {name: stdev(values) if len(values) > 1 else None for name, values in figures.items()},
    }


def _over_all(structures: dict[str, dict], method: str) -> dict:
    """Return the figures over all structures; one of several is no substitute for them."""
    if len(structures) > 1 and ALL not in structures:
        raise UserError(f"the card of {method} has no figures over all structures; train it again")
    return structures.get(ALL) or next(iter(structures.values()))


def _table(rows: dict[str, dict]) -> str:
    cells = []
    for method, row in rows.items():
        means = row.get("mean") or _over_all(row["structures"], method)
        spreads = row.get("spread", {})
        figures = [_with_spread(means[name], spreads.get(name), digits) for name, digits in FIGURES.items()]
        interval = " – ".join(f"{limit:.3f}" for limit in means.get("dice_interval", ()))
        effort = [f"{row[key]:,.0f}" if key in row else "" for key in ("parameters", "seconds_per_epoch")]
        name = f"`{method}`", f"`{Path(row['base']).name}`"
        cells.append([*name, effort[0], figures[0], interval, *figures[1:], effort[1]])
    return markdown_table(COLUMNS, cells)


def _with_spread(value: float | None, spread: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if spread is None else f"{value:.{digits}f} ± {spread:.{digits}f}"
