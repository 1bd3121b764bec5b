"""Train an adapter on a frozen base from a folder of labelled images; write a bundle with the best one.

Beside the bundle, run/ keeps the plan, the environment, the log, the curves and a checkpoint to go on from."""

import argparse
from dataclasses import fields
from pathlib import Path

from engine.choices import LOSSES, METHODS, PLACEMENTS, PLACES_OF_ACTIVATIONS, PRECISIONS
from engine.cli import called, run
from engine.errors import UserError
from engine.imaging.volumes.planes import ALL_PLANES, CHANNELS, PLANES
from engine.training.plan import SCHEDULES, Plan, read_plan


def main() -> None:
    options = _parser().parse_args()
    if options.output is None and not options.check:
        raise UserError("say where the adapter goes: -o FOLDER")
    plan = _plan(options)
    from engine.commands import train  # takes seconds: PyTorch and more

    train.run(options, plan)


def _plan(options: argparse.Namespace) -> Plan:
    """Return the plan: a flag goes before the YAML file, and that before the default."""
    names = {field.name for field in fields(Plan)}
    flags = {name: value for name, value in vars(options).items() if name in names}
    from_file = read_plan(options.config) if options.config else {}
    return Plan(**(from_file | flags))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("train"), description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with anns/train.json, dataset.json or .seg.nrrd files")
    add("-o", "--output", type=Path, help="folder of the new adapter; its name is the adapter's")
    add("--check", action="store_true", help="read the whole data set and report on it, without training")
    add("--base", default="mini", help="name or folder of the base (default: mini)")
    add("--drop-overlap", action="store_true", help="leave what two splits share out of the later one")
    add("--config", type=Path, help="YAML file with hyper-parameters; flags go before it")
    add("--seeds", type=int, nargs="+", help="train once with each, and report mean and spread")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", help=f"auto, {', '.join(PRECISIONS)}")
    add(
        "--keep-activations",
        choices=PLACES_OF_ACTIVATIONS,
        default="auto",
        help="where what a frozen encoder makes of each image is kept between epochs (default: auto)",
    )
    add(
        "--recompute-activations",
        action="store_true",
        help="less memory for more time: the backward pass computes the vision encoder's activations again",
    )
    add("--data-set", help="name and source of the data, for the card")
    add("--licence", default="", help="licence of the weights, for the card")
    add("--modality", default="", help="of the images, for the card: CT, MR, US, CR, …, or RGB for colour")
    add("--resume", action="store_true", help="go on from the checkpoint of an interrupted run")
    add("--overwrite", action="store_true", help="replace an adapter that is there")
    _add_plan(parser.add_argument_group("hyper-parameters", "the defaults are the paper's where it has them"))
    return parser


def _add_plan(group) -> None:
    defaults = Plan()

    def add(flag: str, text: str = "", **settings) -> None:
        default = getattr(defaults, flag[2:].replace("-", "_"))
        shown = f"{text} (default: {'by method' if default is None else default})".strip()
        group.add_argument(flag, default=argparse.SUPPRESS, help=shown, **settings)

    add("--method", choices=METHODS)
    add("--placement", "where adapters act", choices=PLACEMENTS)
    add("--hidden-size", "width of the bottlenecks, or LoRA's rank", type=int)
    add("--planes", "how volumes are sliced", choices=(*PLANES, ALL_PLANES))
    add("--channels", "of grey volumes: a slice thrice, or a slice with its neighbours", choices=CHANNELS)
    add("--epochs", "at most", type=int)
    add("--batch-size", type=int)
    add("--samples-per-epoch", "every annotation, if not given", type=int)
    add("--learning-rate", type=float)
    add("--weight-decay", type=float)
    add("--gradient-clip", type=float)
    add("--loss", "'reference' repeats the paper's code", choices=LOSSES)
    add("--dice-weight", "in the loss", type=float)
    add("--cross-entropy-weight", "in the loss", type=float)
    add("--schedule", "of the learning rate; 'cosine' for a run of a known length", choices=SCHEDULES)
    add("--plateau-epochs", "without a lower validation loss before the rate falls", type=int)
    add("--plateau-factor", "by which the rate is multiplied then", type=float)
    add("--patience-epochs", "without a better validation Dice before training stops", type=int)
    add("--absent-rate", "share of prompts of absent structures", type=float)
    add("--prompts-per-image", type=int)
    add("--augment", "change shape and intensity at random", action="store_true")
    add("--mirror", "with --augment, also mirror left and right", action="store_true")
    add("--seed", type=int)


if __name__ == "__main__":
    run(main)
