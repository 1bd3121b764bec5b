"""Train every method on the same data with equal effort, and put them into one table.

Each training is a command of its own, which is printed, so that any row can be had again alone. What is there is
kept: a comparison that was stopped goes on. Options that are not known here go to `engine.train`, for example
`--samples-per-epoch 160 --batch-size 8`."""

import argparse
from pathlib import Path

from engine.choices import BASE_ALONE, METHODS, PLACEMENTS, SMALL_BASE
from engine.cli import called, run, whole_number


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
        metavar="METHOD",
        help=f"{', '.join((BASE_ALONE, *METHODS))} (default: all that differ much, or the paper's)",
    )
    add("--epochs", type=int, help="of every method (default: 6; with --paper at most 200)")
    add("--seeds", type=int, nargs="+", help="train each method once with each, for means and spreads")
    add("--base", help="of all methods but cris (default: mini; with --paper each method's own public one)")
    add("--cluster", metavar="ADDRESS", help="one training on each GPU of a Ray cluster: local, auto or HOST:PORT")
    add(
        "--cris-base",
        default=SMALL_BASE,
        help="a CLIP with a ResNet for cris, such as clip-rn50 (default: a small one, random weights)",
    )
    table = parser.add_argument_group("the paper's Table 1")
    add = table.add_argument
    add("--paper", action="store_true", help="repeat it, by the protocol of the paper's code, from sets in --data")
    add("--sets", nargs="+", metavar="SET", help="folders in --data (default: the paper's eight)")
    add("--placements", nargs="+", choices=PLACEMENTS, default=["VL"], help="of adapters (V VL VLC: Figure 2)")
    add("--subset", type=whole_number, help="take so many images of each split: a rehearsal")
    add("--estimate", action="store_true", help="say what would run and how long, and stop")
    return parser


if __name__ == "__main__":
    run(main)
