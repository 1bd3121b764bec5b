"""Measure adapters on labelled images: Dice, IoU and HD95 at the original resolution, and what the prompt does."""

import argparse
from pathlib import Path

from engine.choices import BASE_ALONE, GRIDS, HALF, PRODUCT, PROTOCOLS, SPLITS
from engine.cli import called, run
from engine.errors import UserError
from engine.imaging.volumes.planes import CHOICES
from engine.tables import RULE
from engine.training.plan import RANDOM, Plan
from engine.training.protocols import settings

PROMPTS = ("p1", "random", "all", "variants")


def main() -> None:
    options = _parser().parse_args()
    options.adapters = options.compare or [options.adapter]
    if len({Path(name).name for name in options.adapters}) < len(options.adapters):
        raise UserError("two of the adapters have the same name; give each a name of its own")
    if len({folder.resolve().name for folder in options.data}) < len(options.data):
        raise UserError("two of the data sets have the same name; give their folders names of their own")
    _follow(options)
    from engine.commands import evaluate  # takes seconds: PyTorch and more

    evaluate.run(options)


def _follow(options: argparse.Namespace) -> None:
    """Take the protocol's rules where none are given."""
    plan = Plan(**settings(options.protocol, Plan().method))
    options.prompts = options.prompts or ["random" if plan.test_prompts == RANDOM else "p1"]
    options.presence = plan.presence_gate if options.presence is None else options.presence == "on"
    options.grid = options.grid or plan.metric_grid
    options.mask_above = plan.mask_above if options.mask_above is None else options.mask_above


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("evaluate"), description=f"{__doc__} {RULE}")
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="folder with anns/, Train_Folder/, dataset.json or .seg.nrrd files; several come into one table",
    )
    add("--split", choices=SPLITS, default="test")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-a", "--adapter", help=f"name or folder; '{BASE_ALONE}' for the base alone")
    which.add_argument("--compare", nargs="+", metavar="ADAPTER", help="several, with paired differences")
    add("--base", help="name or folder of a base (default: the adapter's own, or mini)")
    add("--plane", choices=CHOICES, help="how volumes are sliced (default: as the adapter wants)")
    add(
        "--prompts",
        nargs="+",
        choices=PROMPTS,
        help="plain class prompt, a random one, all wordings, or the data set's other sheets (default: p1)",
    )
    add(
        "--wrong-prompt",
        nargs="+",
        metavar="PROMPT",
        help="also ask each case for one of these that its labels do not name, and count what is found "
        "(default: the data's other structures and some of other subjects)",
    )
    add("--presence", choices=("on", "off"), help="whether 'not found' empties a mask (default: on)")
    add(
        "--grid",
        choices=GRIDS,
        help="of pictures: 'picture' enlarges probabilities before they are cut; 'enlarged' cuts on the base's "
        "square and enlarges the mask; 'square' compares there (default: picture)",
    )
    add("--mask-above", type=int, help=f"grey value above which a picture's mask begins (default: {HALF})")
    add("--drop-overlap", action="store_true", help="leave out what the split shares with one before it")
    add(
        "--protocol",
        choices=PROTOCOLS,
        default=PRODUCT,
        help="whose rules these four follow where they are not given (default: product)",
    )
    add(
        "--held-out",
        type=Path,
        metavar="FILE",
        help="also ask by the wordings that this file (such as Resources/Models/wordings.yaml) holds out of all "
        "training, and in vain by those of other structures",
    )
    add("--seed", type=int, default=0, help="of the random and the wrong prompts")
    add("--device", default="auto")
    add("--precision", default="auto")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for scores.csv, summary.md, summary.json, cases.png",
    )
    return parser


if __name__ == "__main__":
    run(main)
