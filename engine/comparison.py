"""Train every method on the same data with equal effort, and put them into one table.

Each training is a command of its own, which is printed, so that any row can be had again alone. What is there is
kept: a comparison that was stopped goes on. Options that are not known here go to `engine.train`, for example
`--samples-per-epoch 160 --batch-size 8`."""

import argparse
from pathlib import Path

from engine.choices import BASE_ALONE, METHODS, SMALL_BASE
from engine.cli import called, run

SYSTEMS = ("shallow", "dense", "telescopic", "lora", "decoder", "full", "san", "cris")


def main() -> None:
    options, flags = _parser().parse_known_args()
    from engine.commands import comparison  # takes seconds: PyTorch and more

    comparison.run(options, flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("comparison"),
        description=__doc__,
        allow_abbrev=False,  # flags of engine.train pass
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="folders of labelled images with a test split")
    add("-o", "--output", type=Path, required=True, help="folder for the adapters and the table")
    add(
        "--methods",
        nargs="+",
        choices=(BASE_ALONE, *METHODS),
        default=(BASE_ALONE, *SYSTEMS),
        metavar="METHOD",
        help=", ".join((BASE_ALONE, *METHODS)),
    )
    add("--epochs", type=int, default=6, help="of every method (default: 6)")
    add("--seeds", type=int, nargs="+", help="train each method once with each, for means and spreads")
    add("--base", default="mini", help="of all methods but cris (default: mini)")
    add(
        "--cris-base",
        default=SMALL_BASE,
        help="a CLIP with a ResNet for cris, such as clip-rn50 (default: a small one, random weights)",
    )
    return parser


if __name__ == "__main__":
    run(main)
