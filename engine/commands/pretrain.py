"""Train a base by a recipe, calibrate and measure it, and write its card."""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from transformers import CLIPSegForImageSegmentation, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from engine.cli import progress_bar
from engine.data import DataSet, open_splits, wordings
from engine.errors import UserError
from engine.evaluation.measuring import by_structure, evaluate, means, presences
from engine.files import check_folder, make_folder, write_text
from engine.models.bases import IMAGENET_MEAN, IMAGENET_STD, Base, hash_weights, open_base
from engine.models.bundle import measured
from engine.models.presence import Calibration, calibrate
from engine.models.pretrained import PackagedFile
from engine.models.vocabulary import train_tokenizer
from engine.nets.clipseg import CLIPSeg
from engine.segmentation.devices import choose_device
from engine.segmentation.segmenter import Segmenter
from engine.training.checkpoints import check_checkpoint
from engine.training.packing import PackedSet, pack, read_pack
from engine.training.pretraining import CHECKPOINT, Pretrainer, Step
from engine.training.recipe import Recipe, build, open_sources, source_folders
from engine.training.store import PictureStore, absent_elsewhere
from engine.training.teaching import Lesson, clinical_terms, prepare_lesson
from engine.training.trainer import among_processes
from engine.training.validation import Validator
from engine.version import __version__

CARD = "card.json"


@among_processes()
def run(options: argparse.Namespace) -> None:
    recipe = Recipe.read(options.recipe)
    packed = options.packed or options.output / "packed"
    if options.card_only and not options.data:
        raise UserError("figures need the data sets; add --data")
    check_folder(options.output)
    if options.resume:
        check_checkpoint(options.output / CHECKPOINT)
    device = choose_device(options.device)
    options.device = str(device)
    processes = Accelerator(cpu=device.type == "cpu")
    if options.data and not options.card_only and processes.is_main_process:
        pack_all(recipe, options.data, packed)
    processes.wait_for_everyone()
    if options.pack_only:
        return
    if not options.card_only:
        device = processes.device if processes.num_processes > 1 else device
        network = train(recipe, packed, options, device, processes.is_main_process)
        if processes.is_main_process:
            save(network, recipe, options.output)
    if options.data and processes.is_main_process:
        write_card(recipe, options)


def save(network: CLIPSegForImageSegmentation, recipe: Recipe, folder: Path) -> None:
    """Write a base without its tokenizer, which is there, and without a card."""
    (folder / CARD).unlink(missing_ok=True)  # it would describe other weights
    network.half().save_pretrained(folder)
    size = {"height": recipe.side, "width": recipe.side}
    settings = {"size": size, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    _write_json(folder / "preprocessor_config.json", settings)


def write_card(recipe: Recipe, options: argparse.Namespace) -> None:
    """Calibrate and measure a base, and write what came of it."""
    sets = open_sources(recipe, options.data)
    (options.output / CARD).unlink(missing_ok=True)
    calibration = calibrate_base(options.output, recipe, [s["val"] for s in sets], options.device)
    card = _card(recipe, [s["train"] for s in sets], calibration, options)
    _write_json(options.output / CARD, card)  # so that the figures are those with its presence threshold
    metrics = measure(options.output, source_folders(recipe, options.data), options.device)
    _write_json(options.output / CARD, card | {"metrics": metrics})


def pack_all(recipe: Recipe, roots: Sequence[Path], packed: Path) -> None:
    """Pack the training and validation pictures of a recipe's sets, and what its teacher says about their words;
    what is there already is kept."""
    for splits, source in zip(open_sources(recipe, roots), recipe.all_sources, strict=True):
        for split in ("train", "val"):
            folder = packed / split / source.folder
            if folder.exists() or not splits[split].case_count:
                continue
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            with progress_bar(f"packing {split} {source.folder}", 1) as update:
                pack(
                    splits[split],
                    recipe.side,
                    unfinished,
                    on_picture=lambda done, total, update=update: update(done, total=total),
                    at_most=source.pictures,
                )
            unfinished.rename(folder)
    lesson = packed / "lesson.safetensors"
    if recipe.teacher and not lesson.is_file():
        words = _training_words(recipe, [read_pack(packed / "train" / s.folder) for s in recipe.all_sources])
        known = recipe.read_wordings()
        terms = [term for term in clinical_terms() if not known.held_out_among([term])]
        prepare_lesson(PackagedFile(**recipe.teacher), [*words, *terms]).save(lesson)


def train(
    recipe: Recipe, packed: Path, options: argparse.Namespace, device: torch.device, tells: bool
) -> CLIPSegForImageSegmentation:
    """Return the network with its best weights by validation, or its last ones without validation pictures."""
    sets = [read_pack(packed / "train" / source.folder) for source in recipe.all_sources]
    lesson = Lesson.load(packed / "lesson.safetensors") if recipe.teacher else None
    start = open_base(options.start) if options.start else None
    texts = _training_words(recipe, sets) + (lesson.phrases if lesson else [])
    tokenizer = _tokenizer(recipe, texts, start, options)
    network = build(recipe, tokenizer, start)
    if device.type == "cpu":  # there, the plain attention's backward pass is faster than the fused one's
        network.set_attn_implementation("eager")
    model = CLIPSeg(network, freeze=False).to(device)
    store = PictureStore(sets, recipe.all_sources, recipe.read_wordings(), device)
    held_back = [read_pack(folder) for folder in sorted((packed / "val").glob("[!.]*"))]
    validator = Validator(model, tokenizer, held_back, options.output) if held_back and tells else None
    run = Pretrainer(model, tokenizer, recipe, store, lesson, options.output, validator or (lambda done: None))
    if not tells:
        run.train(lambda step: None, resume=options.resume)
        return network
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(tokenizer)} tokens")
    print(f"{len(store)} pictures of {len(sets)} sets")
    with progress_bar("pretraining", sum(stage.steps for stage in recipe.all_stages)) as update:
        run.train(
            _reporter(recipe, update),
            on_encoded=lambda done, total: update(note=f"{done} of {total} pictures encoded"),
            resume=options.resume,
        )
    if validator:
        model.load_state_dict(load_file(validator.best_weights))
    return network


def _tokenizer(
    recipe: Recipe, texts: Sequence[str], start: Base | None, options: argparse.Namespace
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `start`, that of the run that is resumed, or one that is learned from texts."""
    if options.resume and (options.output / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(options.output)
    tokenizer = start.load_tokenizer() if start else train_tokenizer(texts, recipe.network["vocabulary"])
    make_folder(options.output)
    tokenizer.save_pretrained(options.output)
    return tokenizer


def _training_words(recipe: Recipe, sets: Sequence[PackedSet]) -> list[str]:
    return sorted(set(recipe.read_wordings().all_trained()).union(*(s.wordings for s in sets)))


def calibrate_base(base: Path, recipe: Recipe, sets: Sequence[DataSet], device: str) -> Calibration | None:
    """Choose the presence threshold of a saved base on validation sets, each asked also for what those of other
    regions show; None where there is nothing to choose it by."""
    segmenter = Segmenter(base=str(base), device=device)
    plain = [{annotation.plain_prompt for annotation in s.annotations} for s in sets]
    absent_from_each = absent_elsewhere(
        plain, [wordings(s) for s in sets], recipe.all_sources, recipe.read_wordings()
    )
    present, absent = [], []
    for data_set, others in zip(sets, absent_from_each, strict=True):
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
    before = [sum(stage.steps for stage in recipe.all_stages[:i]) for i in range(len(recipe.all_stages))]

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
        "training": {"stages": recipe.stages},
        "created": date.today().isoformat(),
        "engine_version": __version__,
    }


def _write_json(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")
