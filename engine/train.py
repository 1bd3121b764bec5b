"""Train an adapter on a frozen base from a folder of labelled images; write a bundle with the best one.

Beside the bundle, run/ keeps the plan, the environment, the log, the curves and a checkpoint to go on from."""

import argparse
from dataclasses import fields
from pathlib import Path

from engine.choices import (
    GRIDS,
    LOSSES,
    METHODS,
    PLACEMENTS,
    PLACES_OF_ACTIVATIONS,
    PRECISIONS,
    PROTOCOLS,
    VARIANTS,
)
from engine.cli import called, run, whole_number
from engine.errors import UserError
from engine.imaging.volumes.planes import ALL_PLANES, CHANNELS, PLANES
from engine.training.plan import PROMPTS, RESIZES, SCHEDULES, Plan, read_plan
from engine.training.protocols import base_of, settings


def main() -> None:
    options = _parser().parse_args()
    if options.output is None and not options.check:
        raise UserError("say where the adapter goes: -o FOLDER")
    plan = _plan(options)
    from engine.commands import train  # takes seconds: PyTorch and more

    train.run(options, plan)


def _plan(options: argparse.Namespace) -> Plan:
    """Return the plan: a flag goes before the YAML file, that before the protocol's value, and that before the
    default."""
    names = {field.name for field in fields(Plan)}
    flags = {name: value for name, value in vars(options).items() if name in names}
    from_file = read_plan(options.config) if options.config else {}
    chosen = from_file | flags
    protocol, method = (chosen.get(name, getattr(Plan(), name)) for name in ("protocol", "method"))
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol is {protocol}; there are {', '.join(PROTOCOLS)}")
    options.base = options.base or base_of(protocol, method)
    return Plan(**(settings(protocol, method) | chosen))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("train"), description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="folder with anns/train.json, Train_Folder/, dataset.json or .seg.nrrd",
    )
    add("-o", "--output", type=Path, help="folder of the new adapter; its name is the adapter's")
    add("--check", action="store_true", help="read the whole data set and report on it, without training")
    add("--base", help="name or folder of the base (default: mini, or the protocol's for the method)")
    overlap = parser.add_mutually_exclusive_group()
    overlap.add_argument("--drop-overlap", action="store_true", help="leave what splits share out of the later one")
    overlap.add_argument("--keep-overlap", action="store_true", help="take splits that share images as they are")
    add(
        "--fraction",
        type=int,
        choices=range(1, 101),
        metavar="PERCENT",
        help="take so many percent of the images for training and validation: those that the data set lists for it "
        "(Train_text_10.xlsx), or spread evenly",
    )
    add("--subset", type=whole_number, help="take so many images of each split, spread evenly: a rehearsal")
    add("--config", type=Path, help="YAML file with hyper-parameters; flags go before it")
    add("--seeds", type=int, nargs="+", help="train once with each, and report mean and spread")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
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

    add(
        "--protocol",
        "whose settings are taken where none are given: 'paper' for those of the paper's code",
        choices=PROTOCOLS,
    )
    add("--method", choices=METHODS)
    add("--variant", "of the net of san and cris; 'released' as in the paper's code", choices=VARIANTS)
    add("--start", "name or folder of an adapter with whose weights training starts")
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
    add("--dice-smoothing", "in pixels", type=float)
    add("--precision", "of the forward pass", choices=("auto", *PRECISIONS))
    add("--mask-resize", "how masks come to the base's square", choices=RESIZES)
    add("--mask-above", "the grey value above which a pixel of a mask belongs to it", type=int)
    add("--schedule", "of the learning rate; 'cosine' for a run of a known length", choices=SCHEDULES)
    add("--plateau-epochs", "without a lower validation loss before the rate falls", type=int)
    add("--plateau-factor", "by which the rate is multiplied then", type=float)
    add("--patience-epochs", "without a better validation Dice before training stops", type=int)
    add("--minimum-epochs", "before which training does not stop", type=int)
    add("--minimum-gain", "in validation Dice, less than which is no improvement", type=float)
    add("--validation-prompts", choices=PROMPTS)
    add("--largest-validation", "annotations, of which more are thinned; 0 for all", type=int)
    add("--test-prompts", "by which the adapter is measured too", choices=PROMPTS)
    add("--presence-gate", "in this measuring, 'not found' is an answer", action=argparse.BooleanOptionalAction)
    add("--metric-grid", "of this measuring: see engine.evaluate --help", choices=GRIDS)
    add("--absent-rate", "share of prompts of absent structures", type=float)
    add("--prompts-per-image", type=int)
    add("--augment", "change shape and intensity at random", action="store_true")
    add("--mirror", "with --augment, also mirror left and right", action="store_true")
    add("--seed", type=int)


if __name__ == "__main__":
    run(main)
