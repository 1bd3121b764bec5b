"""Train the methods that are not trained yet, one command after another, and write their table."""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from engine.choices import BASE_ALONE, SMALL_BASE
from engine.errors import UserError
from engine.evaluation.measuring import ALL
from engine.files import check_folder, write_text
from engine.models.bases import open_base, save_clip
from engine.models.bundle import CARD, read_card
from engine.models.places import is_base
from engine.nets.towers import new_clip
from engine.prompts import MAXIMUM_TOKENS
from engine.tables import markdown_table
from engine.training.run_files import CHECKPOINT, LOG

COLUMNS = ("method", "base", "trained parameters", "Dice", "95 % interval", "IoU", "HD95", "seconds an epoch")
NOTE = """Test split, plain class prompt, means over all cases at the original resolution; HD95 over those in which
both masks have a voxel, in mm (in pixels for pictures). Seconds are those of the fastest epoch, with validation;
`none` is the base alone."""
SMALL_TEXT = {"width": 128, "heads": 4, "layers": 4, "context_length": MAXIMUM_TOKENS, "pool_type": "eos"}
SMALL_VISION = {"layers": [2, 2, 2, 2], "width": 32, "head_width": 64, "patch_size": None}


def run(options: argparse.Namespace, flags: list[str]) -> None:
    check_folder(options.output)
    tables, figures = [], {}
    for data in options.data:
        rows = {method: _row(data, method, options, flags) for method in options.methods}
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
    if not _is_done(folder, options.epochs):
        base = _cris_base(options) if method == "cris" else options.base
        _train(folder, ["--data", data, "--method", method, "--base", base, "--epochs", options.epochs, *flags])
    return _figures(folder)


def _cris_base(options: argparse.Namespace) -> str:
    """Return the base of cris; a small one is made of random weights, with the tokenizer of the other base."""
    if options.cris_base != SMALL_BASE:
        return options.cris_base
    folder = options.output / "bases" / "clip-small-resnet"
    if not is_base(folder):
        base = open_base(options.base)
        tokenizer = base.load_tokenizer()
        text = SMALL_TEXT | {"vocab_size": len(tokenizer), "eos_id": tokenizer.eos_token_id}
        vision = SMALL_VISION | {"image_size": base.side}
        config = {"embed_dim": SMALL_TEXT["width"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        torch.manual_seed(0)
        save_clip(folder, new_clip(config), config, tokenizer)
    return str(folder)


def _is_done(folder: Path, epochs: int) -> bool:
    card = read_card(folder) if (folder / CARD).is_file() else None
    return card is not None and bool(card.metrics) and card.training["epochs"] == epochs


def _train(folder: Path, options: list) -> None:
    resume = ["--resume"] if (folder / "run" / CHECKPOINT).is_file() else []
    _run("engine.train", *options, "-o", folder, *resume)


def _base_alone(data: Path, folder: Path, base: str) -> dict:
    summary = folder / "summary.json"
    if not summary.is_file():
        _run("engine.evaluate", "--data", data, "--adapter", BASE_ALONE, "--base", base, "-o", folder)
    (adapter,) = json.loads(summary.read_text(encoding="utf-8"))["adapters"].values()
    return {"base": base, "structures": adapter["prompts"]["plain"]}


def _run(module: str, *words: object) -> None:
    """Run a command of the engine, and print it."""
    command = ["-m", module, *map(str, words)]
    print(shlex.join(["python", *command]), flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        raise UserError(f"{module} ended with code {code}; mend it, and start the comparison again")


def _figures(folder: Path) -> dict:
    card = read_card(folder)
    (structures,) = card.metrics.values()
    with (folder / "run" / LOG).open(encoding="utf-8") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return {
        "base": card.base,
        "parameters": card.training["parameters"],
        "seconds_per_epoch": round(min(seconds), 1),
        "structures": structures,
        "training": card.training,
    }


def _over_all(structures: dict[str, dict], method: str) -> dict:
    """Return the figures over all structures; one of several is no substitute for them."""
    if len(structures) > 1 and ALL not in structures:
        raise UserError(f"the card of {method} has no figures over all structures; train it again")
    return structures.get(ALL) or next(iter(structures.values()))


def _table(rows: dict[str, dict]) -> str:
    cells = []
    for method, row in rows.items():
        means = _over_all(row["structures"], method)
        low, high = means["dice_interval"]
        distance = "" if means["hd95"] is None else f"{means['hd95']:.1f}"
        figures = f"{means['dice']:.3f}", f"{low:.3f} – {high:.3f}", f"{means['iou']:.3f}", distance
        effort = [f"{row[key]:,.0f}" if key in row else "" for key in ("parameters", "seconds_per_epoch")]
        cells.append([f"`{method}`", f"`{Path(row['base']).name}`", effort[0], *figures, effort[1]])
    return markdown_table(COLUMNS, cells)
