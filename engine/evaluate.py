"""Measure adapters on labelled images: Dice, IoU and HD95 at the original resolution, and what the prompt does."""

import argparse
from pathlib import Path

from engine.choices import BASE_ALONE, SPLITS
from engine.cli import called, run
from engine.errors import UserError
from engine.imaging.volumes.planes import CHOICES
from engine.tables import RULE

PROMPTS = ("p1", "random", "all")


def main() -> None:
    options = _parser().parse_args()
    options.adapters = options.compare or [options.adapter]
    if len({Path(name).name for name in options.adapters}) < len(options.adapters):
        raise UserError("two of the adapters have the same name; give each a name of its own")
    from engine.commands import evaluate  # takes seconds: PyTorch and more

    evaluate.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("evaluate"), description=f"{__doc__} {RULE}")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with anns/, dataset.json or .seg.nrrd files")
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
        default=["p1"],
        help="plain class prompt, a random one, all wordings",
    )
    add(
        "--wrong-prompt",
        nargs="+",
        metavar="PROMPT",
        help="also ask each case for one of these that its labels do not name, and count what is found "
        "(default: the data's other structures and some of other subjects)",
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
