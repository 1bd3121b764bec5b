"""Measure every shipped adapter again on the test split of its data set, and put the figures into one table.

Each adapter is asked for what is there, by the plain class prompt and by a random one, and for what is not. What
its card says stands beside what is measured. An adapter whose data set is not found is left out."""

import argparse
from pathlib import Path

from engine.cli import called, run
from engine.errors import UserError
from engine.imaging.volumes.planes import CHOICES


def main() -> None:
    options = _parser().parse_args()
    if options.write_cards and options.subset:
        raise UserError("a card holds figures of whole test splits; leave out --subset or --write-cards")
    if options.plane and (options.write_cards or options.gallery):
        raise UserError("cards and gallery show adapters in their own planes; leave out --plane")
    from engine.commands import results  # takes seconds: PyTorch and more

    results.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("results"), description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="data sets, or folders that hold them")
    add("--adapters", nargs="+", metavar="ADAPTER", help="names or folders (default: all that are shipped)")
    add("--subset", type=int, metavar="N", help="only N test cases of each set, spread evenly")
    add("--plane", choices=CHOICES, help="how volumes are sliced (default: as each adapter wants)")
    add("--seed", type=int, default=0, help="of the random and the absent prompts")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--gallery", type=Path, metavar="FOLDER", help="also draw a page with pictures into this folder")
    add(
        "--write-cards",
        action="store_true",
        help="write the figures, and with --gallery a picture, into each adapter's own folder",
    )
    add("-o", "--output", type=Path, required=True, help="folder for results.md, results.json and scores")
    return parser


if __name__ == "__main__":
    run(main)
