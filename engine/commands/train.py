"""Train an adapter, or several from several seeds; calibrate, test and write it. Or check a data set."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.markdown import Markdown

from engine.choices import HALF
from engine.cli import interruptible, progress_bar
from engine.data import (
    DataSet,
    open_data_set,
    open_splits,
    shared_images,
    shows_anything,
    unnamed_values,
    usual_prompts,
    wordings,
)
from engine.data.check_report import MOST_PROBLEMS, markdown, write_report
from engine.data.checking import check
from engine.data.described import images_of_fraction
from engine.data.splits import overlap_warning, spread_evenly
from engine.errors import Cancelled, UserError
from engine.evaluation.card_figures import calibrate_adapter, measure_adapter, measure_by
from engine.evaluation.measuring import Rules, Score, means
from engine.files import check_folder, write_csv, write_text
from engine.imaging.volumes.planes import ALL_PLANES, PLANES
from engine.models.bases import Base, open_base
from engine.models.bundle import AdapterCard, check_bundle_folder, save_bundle, write_card
from engine.prompts import OTHER_STRUCTURES, absent_from
from engine.segmentation.devices import choose_device
from engine.segmentation.segmenter import Segmenter
from engine.training.checkpoints import check_checkpoint
from engine.training.plan import PLAIN, Plan
from engine.training.protocols import reasons
from engine.training.run_files import CHECKPOINT, PROTOCOL_SCORES, SCORES
from engine.training.runs import tensorboard, write_log, write_start
from engine.training.trainer import Epoch, Trainer, among_processes
from engine.version import __version__


@among_processes()
def run(options: argparse.Namespace, plan: Plan) -> None:
    plan = plan.resolved()
    planes = PLANES if plan.planes == ALL_PLANES else (plan.planes,)
    if options.check:
        _check(options, planes, plan.channels)
        return
    base = open_base(options.base)
    sets, shared = _open_sets(options, planes, plan)
    if options.seeds is None:
        _train_one(plan, base, sets, shared, options.output, options)
        return
    results = {}
    for seed in options.seeds:
        print(f"seed {seed}")
        folder = options.output / f"seed-{seed}"
        begun = (folder / "run" / CHECKPOINT).is_file()
        of_seed = argparse.Namespace(**{**vars(options), "resume": options.resume and begun})
        results[seed] = _train_one(replace(plan, seed=seed), base, sets, shared, folder, of_seed)
    _summarise_seeds(options.output, results)


def _open_sets(
    options: argparse.Namespace, planes: tuple[str, ...], plan: Plan
) -> tuple[dict[str, DataSet], dict[str, int]]:
    """Return the splits, and how many images each shares with one before it where that is kept."""
    sets = open_splits(options.data, planes, plan.channels, options.drop_overlap, options.keep_overlap)
    shared = {split: found for split, found in shared_images(sets).items() if found} if options.keep_overlap else {}
    for split, overlaps in shared.items():
        print(f"warning: {overlap_warning(split, overlaps)}")
    if options.subset or options.fraction:
        for split, data_set in sets.items():
            kept = _kept(options, split, list(data_set.paths.values()))
            whole = open_data_set(options.data, split, planes, plan.channels)
            left_out = set(whole.paths.values()).difference(kept)
            sets[split] = open_data_set(options.data, split, planes, plan.channels, left_out)
    return sets, {split: len(overlaps) for split, overlaps in shared.items()}


def _kept(options: argparse.Namespace, split: str, paths: list[Path]) -> list[Path]:
    """Return the images of a split that are wanted; a fraction is of those for training and validation."""
    if options.fraction and split != "test":
        listed = images_of_fraction(options.data, split, options.fraction)
        paths = listed or spread_evenly(paths, -(-len(paths) * options.fraction // 100))
    return spread_evenly(paths, options.subset) if options.subset else paths


def _check(options: argparse.Namespace, planes: tuple[str, ...], channels: str) -> None:
    """Report what is in the data set; problems end the command with its code for errors."""
    output = options.output or Path("check")
    check_folder(output)
    with progress_bar("reading", 1) as update, interruptible() as interrupted:

        def on_case(done: int, total: int) -> None:
            update(done, total=total)
            if interrupted():
                raise Cancelled

        report = check(options.data, planes, channels, options.drop_overlap or options.keep_overlap, on_case)
    written = write_report(output, report, planes, channels)
    Console().print(Markdown(markdown(report, MOST_PROBLEMS)))
    print(f"wrote {', '.join(map(str, written))}")
    if report.stops:
        raise UserError(f"training would stop at {report.stops} problem(s); see {output / 'report.md'}")


def _train_one(
    plan: Plan,
    base: Base,
    sets: dict[str, DataSet],
    shared: dict[str, int],
    output: Path,
    options: argparse.Namespace,
) -> dict | None:
    """Train one adapter, calibrate and test it; return the means over the test split, None where there is none."""
    check_bundle_folder(output, options.overwrite or options.resume)
    folder = output / "run"
    masks_above = {split: data_set.masks_above(plan.mask_above) for split, data_set in sets.items()}
    prompts = usual_prompts(sets["train"])
    others = absent_from(wordings(sets["train"]), OTHER_STRUCTURES)
    validation_set = masks_above["val"] if shows_anything(sets["val"]) else None
    device = choose_device(options.device)
    checkpoint = folder / CHECKPOINT
    if options.resume:
        check_checkpoint(checkpoint)
    trainer = Trainer(
        base,
        plan,
        masks_above["train"],
        validation_set,
        others,
        checkpoint,
        device,
        options.keep_activations,
        options.recompute_activations,
    )
    if options.resume:
        trainer.resume()
    card = replace(
        _card(plan, base, prompts, output, options), training={"shared_images": shared} if shared else {}
    )
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        where = str(accelerator.device), accelerator.num_processes
        write_start(folder, plan, options.data, base.name, *where)
        counts = {split: len(data_set.annotations) for split, data_set in sets.items()}
        print(f"annotations: {counts['train']} for training, {counts['val']} for validation")
        unnamed = unnamed_values(sets["train"].unnamed() | sets["val"].unnamed())
        if unnamed:
            print(f"warning: nothing names {unnamed}; they count as background")
    with _telling_how_to_go_on():
        _run(trainer, card, output)
    if not trainer.accelerator.is_main_process:
        return None
    save_bundle(output, trainer.model.trained, _finished(card, trainer))
    segmenter = Segmenter(str(output), options.base, options.device)
    _calibrate(segmenter, sets["val"], others)
    figures = _test(segmenter, plan, sets["test"], others, folder)
    write_card(output, segmenter.card)
    print(f"wrote {output}")
    return figures


def _run(trainer: Trainer, card: AdapterCard, output: Path) -> None:
    main_process = trainer.accelerator.is_main_process
    board = tensorboard(output / "run", len(trainer.history)) if main_process else nullcontext()
    with progress_bar("training", 1) as update, interruptible() as interrupted, board as log_epoch:

        def on_step(done: int, total: int) -> None:
            if main_process:
                update(done, total=total, note=_note(trainer))
            if interrupted():
                raise Cancelled

        def on_epoch(epoch: Epoch) -> None:
            if main_process:
                write_log(output / "run", trainer.history)
                log_epoch(epoch)
                if epoch.best:
                    save_bundle(output, trainer.model.trained, _finished(card, trainer))
                Console().print(_line(epoch))

        trainer.train(on_step, on_epoch)


def _note(trainer: Trainer) -> str:
    """Return what is said beside the bar: where the run stands, and how long it may take at most."""
    history, plan = trainer.history, trainer.plan
    note = f"epoch {len(history) + 1} of at most {plan.epochs}, loss {trainer.recent_loss:.3f}"
    if history:
        minutes = (plan.epochs - len(history)) * mean(epoch.seconds for epoch in history) / 60
        note += f", Dice {max(epoch.validation_dice for epoch in history):.3f}, at most {minutes:.0f} min left"
    return note


@contextmanager
def _telling_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except Cancelled:
        print("the run is saved; go on with the same command and --resume")
        raise


def _finished(card: AdapterCard, trainer: Trainer) -> AdapterCard:
    seconds = round(sum(epoch.seconds for epoch in trainer.history))
    plan = trainer.plan
    training = (
        card.training
        | asdict(plan)
        | {
            "protocol_reasons": reasons(plan.protocol, plan.method),
            "start": Path(plan.start).name if plan.start else None,  # a path may name a person
            "parameters": sum(p.numel() for p in trainer.model.trained.parameters() if p.requires_grad),
            "seconds": seconds,
            "epochs_run": len(trainer.history),
            "device": str(trainer.accelerator.device),
        }
    )
    return replace(card, training=training)


def _card(plan: Plan, base: Base, prompts: list[str], output: Path, options: argparse.Namespace) -> AdapterCard:
    return AdapterCard(
        name=output.resolve().name,
        method=plan.method,
        placement=plan.placement,
        hidden_size=plan.hidden_size,
        variant=plan.variant,
        base=base.name,
        base_sha256=base.sha256,
        prompts=prompts,
        plane=plan.planes,
        channels=plan.channels,
        data_set=options.data_set or options.data.resolve().name,
        licence=options.licence,
        modality=options.modality,
        created=date.today().isoformat(),
        engine_version=__version__,
    )


def _calibrate(segmenter: Segmenter, validation_set: DataSet, others: list[str]) -> None:
    with progress_bar("calibrating", 1) as update:
        calibration = calibrate_adapter(
            segmenter, validation_set, others, lambda done, total: update(done, total=total)
        )
    print(calibration or "presence threshold 0.5, not calibrated: no validation images with labels")


def _test(segmenter: Segmenter, plan: Plan, test_set: DataSet, others: list[str], folder: Path) -> dict | None:
    """Return the means over the test split, segmented as a user would; None where there is none. Where the plan
    has other rules, measure by those too."""
    if not test_set.case_count:
        return None
    with progress_bar("testing", test_set.case_count) as update:
        scores, rates = measure_adapter(segmenter, test_set, others, update)
    if not scores:
        print("not tested: nothing is labelled in the split 'test'")
        return None
    write_csv(folder / SCORES, _numbered(scores))
    total = means(scores)
    print(f"test {_figures(total)}")
    if rates:
        print(f"test: {rates}")
    rules = Rules(plan.presence_gate, plan.metric_grid)
    if (rules, plan.test_prompts, plan.mask_above) != (Rules(), PLAIN, HALF):
        with progress_bar("testing by the plan's rules", test_set.case_count) as update:
            masks = test_set.masks_above(plan.mask_above)
            theirs = measure_by(rules, plan.test_prompts, segmenter, masks, plan.seed, update)
        write_csv(folder / PROTOCOL_SCORES, _numbered(theirs))
        print(f"test with {plan.test_prompts} prompts, {rules}: {_figures(means(theirs))}")
    return total


def _figures(total: dict) -> str:
    return f"Dice {total['dice']:.3f}, IoU {total['iou']:.3f}, HD95 {total['hd95']}"


def _numbered(scores: list[Score]) -> list[Score]:
    """Return scores with numbers for their cases, in the order of the split: a file may have a patient's name."""
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(s.case for s in scores), start=1)}
    return [replace(score, case=numbers[score.case]) for score in scores]


def _summarise_seeds(output: Path, results: dict[int, dict | None]) -> None:
    """Print and write the mean and the spread over seeds."""
    if any(result is None for result in results.values()):
        return
    summary = {}
    for figure in ("dice", "iou", "hd95"):
        values = [result[figure] for result in results.values() if result[figure] is not None]
        if values:
            spread = stdev(values) if len(values) > 1 else 0.0
            summary[figure] = {"mean": mean(values), "spread": spread, "seeds": values}
            print(f"test {figure}: {mean(values):.3f} ± {spread:.3f} over {len(values)} seeds")
    write_text(output / "seeds.json", json.dumps(summary, indent=1) + "\n")


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}: loss {epoch.training_loss:.3f}, validation loss {epoch.validation_loss:.3f}, "
        f"Dice {epoch.validation_dice:.3f}{' (best)' if epoch.best else ''}, {epoch.seconds:.0f} s"
    )
