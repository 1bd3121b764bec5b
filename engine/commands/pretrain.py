"""Train a base by a recipe, calibrate and measure it, and write its card."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import yaml
from accelerate import Accelerator
from rich.console import Console

from engine.cli import progress_bar
from engine.data import DataSet, open_splits
from engine.errors import UserError
from engine.evaluation.measuring import by_structure, evaluate, means, presences
from engine.files import check_folder, make_folder, write_text
from engine.models.bases import IMAGENET_MEAN, IMAGENET_STD, hash_weights, open_base
from engine.models.bundle import measured
from engine.models.presence import Calibration, calibrate
from engine.nets.clipseg import CLIPSeg
from engine.segmentation.devices import choose_device
from engine.segmentation.segmenter import Segmenter
from engine.training.checkpoints import check_checkpoint
from engine.training.pretraining import (
    Recipe,
    Step,
    absent_structures,
    build,
    open_sources,
    pretrain,
    source_folders,
)
from engine.training.trainer import among_processes
from engine.version import __version__


@among_processes()
def run(options: argparse.Namespace) -> None:
    options.device = str(choose_device(options.device))
    try:
        recipe = Recipe(**yaml.safe_load(options.recipe.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(f"{options.recipe} is no recipe ({' '.join(str(error).split())})") from error
    check_folder(options.output)
    checkpoint = options.output / "checkpoint.safetensors"
    if options.resume:
        check_checkpoint(checkpoint)
    started = time.time()
    sets = open_sources(recipe, options.data)
    network, tokenizer = build(recipe, sets, open_base(options.start) if options.start else None)
    make_folder(options.output)
    if options.device == "cpu":  # there, the plain attention's backward pass is faster than the fused one's
        network.set_attn_implementation("eager")
    processes = Accelerator(cpu=options.device == "cpu")
    model = CLIPSeg(network, freeze=False).to(processes.device if processes.num_processes > 1 else options.device)
    if not processes.is_main_process:
        return pretrain(model, tokenizer, recipe, sets, checkpoint, lambda step: None, options.resume)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(tokenizer)} tokens")
    with progress_bar("pretraining", sum(stage["steps"] for stage in recipe.stages)) as update:
        pretrain(model, tokenizer, recipe, sets, checkpoint, _reporter(recipe, update), options.resume)
    (options.output / "card.json").unlink(missing_ok=True)  # it would describe other weights until the end
    network.half().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    _write_json(
        options.output / "preprocessor_config.json",
        {"size": {"height": recipe.network["side"], "width": recipe.network["side"]}}
        | {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    )
    folders = source_folders(recipe, options.data)
    calibration = calibrate_base(options.output, recipe, folders, options.device)
    card = _card(recipe, sets, calibration, options, time.time() - started)
    _write_json(options.output / "card.json", card)  # so that the figures are those with its presence threshold
    _write_json(options.output / "card.json", card | {"metrics": measure(options.output, folders, options.device)})


def calibrate_base(base: Path, recipe: Recipe, folders: Sequence[Path], device: str) -> Calibration | None:
    """Choose the presence threshold of a saved base on the validation splits of all data sets, each asked also for
    what those of other regions show; None where there is nothing to choose it by."""
    segmenter = Segmenter(base=str(base), device=device)
    sets = [open_splits(folder, ("axial",), drop_overlap=True)["val"] for folder in folders]
    present, absent = [], []
    for data_set, others in zip(sets, absent_structures(recipe, sets), strict=True):
        with progress_bar(f"calibrating {data_set.name}", 1) as update:
            here, missing = presences(segmenter, data_set, others, lambda done, total: update(done, total=total))
        present, absent = present + here, absent + missing
    calibration = calibrate(present, absent)
    print(calibration or "presence threshold 0.5, not calibrated: no validation images with labels")
    return calibration


def measure(base: Path, folders: Sequence[Path], device: str) -> dict[str, dict]:
    """Return {data set and split: {prompt: figures}} of a saved base on the test splits, with the plain class
    prompts and without the images that a training split holds too."""
    segmenter = Segmenter(base=str(base), device=device)
    metrics = {}
    for folder in folders:
        data_set = open_splits(folder, ("axial",), drop_overlap=True)["test"]
        if not data_set.case_count:
            continue
        with progress_bar(f"testing {data_set.name}", data_set.case_count) as update:
            scores = evaluate(segmenter, data_set, on_case=update)
        metrics[measured(data_set.name, "plain")] = by_structure(scores)
        Console().print(f"{data_set.name}: Dice {means(scores)['dice']:.3f}")
    return metrics


def _reporter(recipe: Recipe, update: Callable) -> Callable[[Step], None]:
    losses: list[float] = []
    before = [sum(stage["steps"] for stage in recipe.stages[:i]) for i in range(len(recipe.stages))]

    def report(step: Step) -> None:
        losses.append(step.loss)
        mean = sum(losses[-50:]) / len(losses[-50:])
        update(before[step.stage] + step.number, note=f"loss {mean:.3f}")
        if step.number % 50 == 0:
            Console().print(f"stage {step.stage + 1}, step {step.number} of {step.steps}: loss {mean:.3f}")

    return report


def _card(
    recipe: Recipe,
    sets: Sequence[DataSet],
    calibration: Calibration | None,
    options: argparse.Namespace,
    seconds: float,
) -> dict:
    presence = {"presence_threshold": calibration.threshold} if calibration else {}
    if calibration:
        presence["presence"] = {"all data sets, validation splits": asdict(calibration.rates)}
    return {
        "name": recipe.name,
        "sha256": hash_weights(options.output / "model.safetensors"),
        "licence": recipe.licence,
        "intended_use": "Research only; not a medical device.",
        "data_sets": {s.name: sorted({a.plain_prompt for a in s.annotations}) for s in sets},
        **presence,
        "training": {"seconds": round(seconds), "device": options.device, "stages": recipe.stages},
        "created": date.today().isoformat(),
        "engine_version": __version__,
    }


def _write_json(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")
