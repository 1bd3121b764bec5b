"""Look after adapters. `import` converts a checkpoint of the paper's own code into a bundle."""

import argparse
from datetime import date
from pathlib import Path

from engine import __version__
from engine.bases import open_base, user_models
from engine.bundle import AdapterCard, check_bundle_folder, save_bundle
from engine.cli import run
from engine.converting import convert, read_checkpoint
from engine.errors import UserError
from engine.prompts import check_prompts


def main() -> None:
    import_checkpoint(_parser().parse_args())


def import_checkpoint(options: argparse.Namespace) -> None:
    """Convert, check and write; nothing is written unless all fits."""
    name = options.name or (options.output.resolve().name if options.output else options.checkpoint.stem)
    if Path(name).name != name or name == "..":
        raise UserError(f"'{name}' is no name for an adapter; give one without folders, and the folder with -o")
    output = options.output or user_models() / name
    check_bundle_folder(output, options.overwrite, remedy="add --overwrite to replace it, or name a folder with -o")
    if options.prompts:
        check_prompts(options.prompts)
    base = open_base(options.base)
    checkpoint = read_checkpoint(options.checkpoint)
    converted = convert(checkpoint, base)
    parameters = sum(parameter.numel() for parameter in converted.adapter.parameters())
    card = AdapterCard(
        name=name,
        method=converted.method,
        placement=converted.placement,
        hidden_size=converted.hidden_size,
        base=base.name,
        base_sha256=base.sha256,
        prompts=options.prompts,
        threshold=checkpoint.threshold,
        data_set=options.data_set,
        licence=options.licence,
        training={
            "code": "naamiinepal/vlsm-adapter",
            "imported_from": checkpoint.path.name,
            "imported_sha256": checkpoint.sha256,
            "parameters": parameters,
            "base_checked": converted.base_checked,
        },
        created=date.today().isoformat(),
        engine_version=__version__,
    )
    save_bundle(output, converted.adapter, card)
    kind = f"{card.method} {card.placement}, width {card.hidden_size}, {parameters:,} parameters"
    print(f"wrote {output}: {kind}, for the base '{base.name}'")
    if not converted.base_checked:
        print(f"the checkpoint holds the adapter alone: whether it was trained on '{base.name}' cannot be checked")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.adapters", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("import", help="convert a checkpoint of VLSM-Adapter's code")
    add = command.add_argument
    add(
        "checkpoint",
        type=Path,
        metavar="CKPT",
        help="Lightning checkpoint, state dict or .safetensors; no code is run",
    )
    add("-o", "--output", type=Path, help="folder of the adapter (default: in your models folder, under its name)")
    add("--base", default="clipseg", help="name or folder of the base it was trained on (default: clipseg)")
    add("--name", help="of the adapter (default: that of the folder, or of the checkpoint)")
    add("--prompts", nargs="+", default=[], metavar="PROMPT", help="what it was trained on, for the card")
    add("--data-set", default="", help="name and source of the data, for the card")
    add("--licence", default="", help="licence of the weights, for the card")
    add("--overwrite", action="store_true", help="replace an adapter that is there")
    return parser


if __name__ == "__main__":
    run(main)
