"""Look after adapters. `import` converts a checkpoint of the paper's own code into a bundle; `calibrate` chooses
anew from which presence score on a prompt counts as found."""

import argparse
from datetime import date
from pathlib import Path

from engine import __version__
from engine.bases import open_base, user_models
from engine.bundle import AdapterCard, check_bundle_folder, find_adapter, save_bundle, save_card
from engine.cli import progress_bar, run
from engine.converting import convert, read_checkpoint
from engine.data import open_splits, wordings
from engine.errors import UserError
from engine.measuring import calibrate_adapter, measure_adapter
from engine.prompts import OTHER_STRUCTURES, check_prompts
from engine.samples import absent_from
from engine.segmenter import Segmenter


def main() -> None:
    options = _parser().parse_args()
    options.run(options)


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


def calibrate(options: argparse.Namespace) -> None:
    """Put a new presence threshold on an adapter's card, and what the adapter does with it on the test split."""
    folder = find_adapter(options.adapter)
    segmenter = Segmenter(str(folder), options.base, options.device)
    sets = open_splits(options.data, ("axial",), segmenter.channels, options.drop_overlap)
    if not sets["val"].case_count:
        raise UserError(f"{options.data} has nothing in its split 'val'; name cases for validation")
    others = absent_from(wordings(sets["val"]) | set(segmenter.card.prompts), OTHER_STRUCTURES)
    with progress_bar("calibrating", 1) as update:
        calibration = calibrate_adapter(
            segmenter, sets["val"], others, lambda done, total: update(done, total=total)
        )
    if calibration is None:
        raise UserError(f"the split 'val' of {options.data} shows nothing that is labelled; nothing was changed")
    print(calibration)
    if sets["test"].case_count:
        with progress_bar("testing", sets["test"].case_count) as update:
            _, rates = measure_adapter(segmenter, sets["test"], others, update)
        print(f"test: {rates}")
    save_card(folder, segmenter.card)
    print(f"wrote the card of {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.adapters", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import(commands.add_parser("import", help="convert a checkpoint of VLSM-Adapter's code"))
    _add_calibrate(commands.add_parser("calibrate", help="choose the presence threshold on validation images"))
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=import_checkpoint)
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


def _add_calibrate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=calibrate)
    add = command.add_argument
    add("adapter", metavar="ADAPTER", help="name or folder; its card is rewritten, its weights stay")
    add("--data", type=Path, required=True, help="folder of labelled images with a split for validation")
    add("--drop-overlap", action="store_true", help="leave what two splits share out of the later one")
    add("--base", help="name or folder of the base (default: the adapter's own)")
    add("--device", default="auto", help="auto, cuda, mps or cpu")


if __name__ == "__main__":
    run(main)
