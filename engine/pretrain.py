"""Train a small base by a recipe, measure it on the test splits, and write it with its card."""

import argparse
from pathlib import Path

from engine.cli import called, run


def main() -> None:
    parser = argparse.ArgumentParser(prog=called("pretrain"), description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="YAML, like Resources/Models/mini/recipe.yaml")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        help="folders that hold the data sets; not needed to train on packed pictures, but for the card's figures",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the new base, and of the run's files"
    )
    parser.add_argument(
        "--packed",
        type=Path,
        help="folder of the packed pictures; what is missing is packed there (default: OUTPUT/packed)",
    )
    parser.add_argument("--card-only", action="store_true", help="calibrate and measure the base in OUTPUT alone")
    parser.add_argument(
        "--pack-only", action="store_true", help="end once all is packed, to train on another machine"
    )
    parser.add_argument("--start", help="name or folder of a base whose weights and tokenizer to start from")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()
    from engine.commands import pretrain  # takes seconds: PyTorch and more

    pretrain.run(options)


if __name__ == "__main__":
    run(main)
