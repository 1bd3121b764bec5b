"""Measure the engine beside Hugging Face's plain forward, and write a page about it."""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from engine.files import check_output, make_folder, write_text
from engine.models.bases import Base, open_base
from engine.segmentation.devices import choose_device
from engine.segmentation.segmenter import DEFAULT_BASE, Segmenter
from engine.speed import segmenting, training
from engine.speed.clock import machine
from engine.speed.inputs import draw_pictures, full_size_base, random_adapter
from engine.speed.page import PAGE, write_page
from engine.speed.plain import PlainForward

FULL_SIZE = "full size, random weights"
FIGURES = "benchmark.json"
METHODS = ("dense", "shallow")
GROWTH_SLICES = 24  # where something else than slices grows


@dataclass(frozen=True)
class Sizes:
    """How much is measured with --all."""

    bases: tuple[str, ...] = (DEFAULT_BASE, FULL_SIZE)
    slices: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    prompts: tuple[int, ...] = (1, 3, 10, 30, 100)
    adapters: tuple[int, ...] = (1, 2, 5, 10, 20)
    volumes: tuple[int, ...] = (1, 2, 5, 10, 20)
    slices_at_a_time: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    training_batch: int = 4
    memory_batch: int = 32
    compiled: bool = True


QUICK = Sizes((DEFAULT_BASE,), (4, 12), (1, 3), (1, 2), (1, 2), (1, 2), 2, 3, False)


def run(options: argparse.Namespace) -> None:
    if options.output:
        for name in (PAGE, FIGURES):
            check_output(options.output / name, options.overwrite)
    sizes = QUICK if options.quick else Sizes()
    bases = (options.base,) if options.base else sizes.bases if options.all else (FULL_SIZE,)
    with tempfile.TemporaryDirectory() as name:
        figures = _measure(Path(name), bases, sizes, options)
    if options.output:
        make_folder(options.output)
        write_text(options.output / FIGURES, json.dumps(_rounded(figures), indent=1) + "\n")
        write_page(options.output, figures)
        print(f"wrote {options.output / PAGE} and {options.output / FIGURES}")
    else:
        print(json.dumps(_rounded(figures)))


def _measure(folder: Path, names: tuple[str, ...], sizes: Sizes, options: argparse.Namespace) -> dict:
    device = choose_device(options.device)
    figures = {"machine": machine(device), "arguments": _arguments(options), "repeats": options.repeats}
    bases = {name: _open_base(name, folder) for name in names}
    if options.all:  # growth first: what large works leave with the process hides the memory of small ones
        figures["growth_base"] = names[0]
        figures |= _grow(folder, bases[names[0]], sizes, options)
    figures["comparisons"] = [_compare(name, base, options) for name, base in bases.items()]
    if options.all and sizes.compiled:
        figures["compiled"] = [
            _told({"base": name} | segmenting.compiled(_segmenter(base, options), options.repeats))
            for name, base in bases.items()
        ]
    if options.all:
        pictures = draw_pictures(folder / "pictures", sizes.training_batch)
        figures["training"] = [
            _told(
                {"base": name}
                | training.compare(
                    base, pictures, folder / "runs", method, sizes.training_batch, options.repeats, device
                )
            )
            for name, base in bases.items()
            for method in METHODS
        ]
        figures["training_memory"] = [
            _told({"base": name} | training.memory(base, pictures, folder / "runs", sizes.memory_batch, device))
            for name, base in bases.items()
        ]
    return figures | {"load_at_the_end": round(psutil.getloadavg()[0], 1)}


def _open_base(name: str, folder: Path) -> Base:
    return open_base(str(full_size_base(folder / "full")) if name == FULL_SIZE else name)


def _compare(name: str, base: Base, options: argparse.Namespace) -> dict:
    segmenter, plain = _ways(base, options)
    return _told(
        {
            "base": name,
            "precision": str(segmenter.model.dtype).removeprefix("torch."),
            "encoder_gflop": segmenting.encoder_gflop(segmenter),
            "product_gflops": segmenting.product_gflops(segmenter.device, segmenter.model.dtype),
            **segmenting.compare(segmenter, plain, options.slices, options.repeats),
        }
    )


def _grow(folder: Path, base: Base, sizes: Sizes, options: argparse.Namespace) -> dict:
    segmenter, plain = _ways(base, options)
    slices = min(GROWTH_SLICES, max(sizes.slices))
    folders = [random_adapter(folder / f"adapter-{n}", base, METHODS[n % 2], n) for n in range(max(sizes.adapters))]
    settings = {"device": options.device, "precision": options.precision}
    growth = {
        "prompts": segmenting.over_prompts(segmenter, plain, slices, sizes.prompts),
        "volumes": segmenting.over_volumes(segmenter, plain, slices, sizes.volumes),
        "slices_at_a_time": segmenting.over_batches(segmenter, plain, sizes.slices_at_a_time),
        "adapters": segmenting.over_adapters(folders, settings, plain, slices, sizes.adapters),
        "slices": segmenting.over_slices(segmenter, plain, sizes.slices),
    }
    for rows in growth.values():
        for row in rows:
            _told(row)
    return {"growth": growth, "profile": segmenting.where_the_time_goes(segmenter, slices)}


def _ways(base: Base, options: argparse.Namespace) -> tuple[Segmenter, PlainForward]:
    segmenter = _segmenter(base, options)
    return segmenter, PlainForward(base, segmenter.device)


def _segmenter(base: Base, options: argparse.Namespace) -> Segmenter:
    return Segmenter(base=str(base.folder), device=options.device, precision=options.precision)


def _told(figures: dict) -> dict:
    """Show figures as a table on standard error, and return them."""
    table = Table("what", "value")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(file=sys.stderr).print(table)
    return figures


def _rounded(figures: object) -> object:
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [_rounded(value) for value in figures]
    return float(f"{figures:.4g}") if isinstance(figures, float) else figures


def _arguments(options: argparse.Namespace) -> str:
    words = ["--all"] * options.all + ["--quick"] * options.quick
    given = {"device": options.device, "precision": options.precision}
    return " ".join([*words, *(f"--{name} {value}" for name, value in given.items() if value != "auto")])
