"""Segment a real head by text prompts, offline, and compare it with the tissue maps published with it."""

import argparse
from pathlib import Path

from engine.cli import called, run


def main() -> None:
    parser = argparse.ArgumentParser(prog=called("demo"), description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    from engine.commands import demo  # takes seconds: PyTorch and more

    demo.run(options)


if __name__ == "__main__":
    run(main)
