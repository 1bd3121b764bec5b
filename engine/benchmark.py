"""Compare Hugging Face's plain forward, slice by slice, with the engine, in one run on one machine; with --all also
measure training, and how time and memory grow, and write a page about it."""

import argparse
from pathlib import Path

from engine.choices import DEVICES, PRECISIONS
from engine.cli import called, run
from engine.errors import UserError


def main() -> None:
    options = _parser().parse_args()
    if options.all and not options.output:
        raise UserError("--all writes a page with plots; name its folder with -o FOLDER")
    from engine.commands import benchmark  # takes seconds: PyTorch and more

    benchmark.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("benchmark"), description=__doc__)
    add = parser.add_argument
    add("--base", help="name or folder (default: the full-size architecture with random weights; --all: also mini)")
    add("--slices", type=int, default=24, help="of the volume that is compared, each 512×512 (default: 24)")
    add("--repeats", type=int, default=3, help="of which the median is reported")
    add("--device", default="auto", choices=DEVICES)
    add("--precision", default="auto", choices=("auto", *PRECISIONS))
    add("--all", action="store_true", help="also training, and growing slices, prompts, adapters and volumes")
    add("--quick", action="store_true", help="with --all: little of everything, to see that it runs")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for a page with plots, and all figures; needed by --all",
    )
    add("--overwrite", action="store_true", help="replace what is there")
    return parser


if __name__ == "__main__":
    run(main)
