"""Train an adapter on a frozen base from a folder of labelled images; write a bundle with the best one."""

import argparse
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path

from rich.console import Console

from engine import __version__
from engine.bases import open_base
from engine.bundle import AdapterCard, save_bundle
from engine.cli import progress_bar, run
from engine.data import DataSet, open_data_set
from engine.devices import choose_device
from engine.errors import UserError
from engine.evaluation import by_structure, evaluate, means
from engine.imaging.planes import PLANES
from engine.model.adapter import PLACEMENTS, Adapter
from engine.model.methods import METHODS
from engine.segmenter import Segmenter
from engine.training import Epoch, Plan, train

OTHER_STRUCTURES = (
    "liver",
    "left ventricle",
    "fetal head",
    "knee cartilage",
    "optic disc",
    "tooth",
    "polyp",
    "tumor",
)


def main() -> None:
    options = _parser().parse_args()
    if (options.output / "card.json").exists() and not options.overwrite:
        raise UserError(f"{options.output} holds an adapter already; add --overwrite to replace it")
    base = open_base(options.base)
    planes = PLANES if options.planes == "all" else (options.planes,)
    sets = {split: open_data_set(options.data, split, planes) for split in ("train", "val", "test")}
    training_set = sets["train"]
    plan = Plan(**{f.name: getattr(options, f.name) for f in fields(Plan)}).resolved()
    prompts = sorted({a.plain_prompt for a in training_set.annotations})
    card = AdapterCard(
        name=options.output.resolve().name,
        method=plan.method,
        placement=plan.placement,
        hidden_size=plan.hidden_size,
        base=base.name,
        base_sha256=base.sha256,
        prompts=prompts,
        plane="auto" if options.planes == "all" else options.planes,
        data_set=options.data_set or options.data.resolve().name,
        licence=options.licence,
        created=date.today().isoformat(),
        engine_version=__version__,
    )
    print(
        f"{len(training_set.annotations)} annotations for training, {len(sets['val'].annotations)} for validation"
    )
    model, history = _train(base, plan, sets, [s for s in OTHER_STRUCTURES if s not in prompts], card, options)
    values = asdict(card) | {
        "training": asdict(plan) | {"seconds": round(sum(e.seconds for e in history)), "epochs_run": len(history)},
    }
    save_bundle(options.output, model.adapter, AdapterCard(**values))
    values["metrics"] = _test(options.output, options, sets["test"])
    save_bundle(options.output, model.adapter, AdapterCard(**values))
    print(f"wrote {options.output}")


def _train(base, plan: Plan, sets: dict[str, DataSet], absent: list[str], card: AdapterCard, options):
    history: list[Epoch] = []
    validation_set = sets["val"] if sets["val"].annotations else None
    with progress_bar("epoch 1", 1) as update:

        def on_epoch(epoch: Epoch, adapter: Adapter) -> None:
            history.append(epoch)
            if epoch.best:
                save_bundle(options.output, adapter, card)
            Console().print(_line(epoch))

        model = train(
            base,
            plan,
            sets["train"],
            validation_set,
            absent,
            choose_device(options.device),
            on_step=lambda done, total: update(done, total=total, note=f"epoch {len(history) + 1}"),
            on_epoch=on_epoch,
        )
    return model, history


def _test(bundle: Path, options: argparse.Namespace, test_set: DataSet) -> dict:
    """Return the figures of a written bundle on the test split, segmenting as a user would."""
    if not test_set.case_count:
        return {}
    segmenter = Segmenter(str(bundle), options.base, options.device)
    with progress_bar("testing", test_set.case_count) as update:
        scores = evaluate(segmenter, test_set, on_case=update)
    total = means(scores)
    print(f"test Dice {total['dice']:.3f}, IoU {total['iou']:.3f}")
    return {f"{test_set.name}, test split, plain class prompt": by_structure(scores)}


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number}: loss {epoch.training_loss:.3f}, validation loss {epoch.validation_loss:.3f}, "
        f"Dice {epoch.validation_dice:.3f}{' (best)' if epoch.best else ''}, {epoch.seconds:.0f} s"
    )


def _parser() -> argparse.ArgumentParser:
    defaults = Plan()
    parser = argparse.ArgumentParser(prog="python -m engine.train", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with anns/train.json or dataset.json")
    add("-o", "--output", type=Path, required=True, help="folder of the new adapter; its name is the adapter's")
    add("--base", default="mini", help="name or folder of the base (default: mini)")
    add("--method", choices=METHODS, default=defaults.method)
    add("--placement", choices=PLACEMENTS, help="where adapters act (default: VL)")
    add("--hidden-size", type=int, help="width of the bottlenecks (default: the paper's for the method)")
    add("--planes", choices=(*PLANES, "all"), default="axial", help="how volumes are sliced (default: axial)")
    add("--epochs", type=int, default=defaults.epochs, help="at most (default: 200)")
    add("--batch-size", type=int, default=defaults.batch_size)
    add("--samples-per-epoch", type=int, help="default: every annotation")
    add("--learning-rate", type=float, help="default: the method's own; 1e-3 for dense, 3e-4 for shallow")
    add("--weight-decay", type=float, default=defaults.weight_decay)
    add("--gradient-clip", type=float, default=defaults.gradient_clip)
    add("--plateau-epochs", type=int, default=defaults.plateau_epochs)
    add("--patience-epochs", type=int, default=defaults.patience_epochs)
    add("--absent-rate", type=float, default=defaults.absent_rate, help="share of prompts of absent structures")
    add("--prompts-per-image", type=int, default=defaults.prompts_per_image)
    add("--augment", action="store_true", help="change shape and intensity at random")
    add("--mirror", action="store_true", help="with --augment, also mirror left and right")
    add("--seed", type=int, default=defaults.seed)
    add("--device", default="auto")
    add("--data-set", help="name and source of the data, for the card")
    add("--licence", default="", help="licence of the weights, for the card")
    add("--overwrite", action="store_true")
    return parser


if __name__ == "__main__":
    run(main)
