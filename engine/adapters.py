"""Look after adapters: list, install, share, verify and remove them, choose again from which presence score on a
prompt counts as found, and convert checkpoints of the paper's own code."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from engine.cli import called, run
from engine.errors import UserError
from engine.models.bundle import README
from engine.models.library import (
    Entry,
    install_adapter,
    list_adapters,
    remove_adapter,
    share_adapter,
    verify_adapter,
)


def main() -> None:
    options = _parser().parse_args()
    options.do(options)


def show(options: argparse.Namespace) -> None:
    """List the adapters: a line each, or JSON for programs."""
    entries = list_adapters()
    if options.json:
        print(json.dumps([asdict(entry) | {"folder": str(entry.folder)} for entry in entries]))
        return
    for entry in entries:
        print(_line(entry))


def install(options: argparse.Namespace) -> None:
    done = install_adapter(options.source, options.name, options.overwrite, options.dry_run)
    if options.json:
        print(json.dumps(asdict(done) | {"folder": str(done.folder)}))
        return
    word = "would install" if options.dry_run else "installed"
    instead = " in place of the one that is there" if done.replaces else ""
    print(f"{word} {done.name}{instead}: {done.folder}")


def share(options: argparse.Namespace) -> None:
    parcel, address = share_adapter(options.adapter, options.name, options.public, options.dry_run)
    print(f"would send to {parcel}" if options.dry_run else f"sent to {parcel}: {address}")
    if options.dry_run:
        print(f"\n{parcel.files[README].decode()}")


def verify(options: argparse.Namespace) -> None:
    """Say what is right and wrong with each adapter; end with the code for errors where anything is wrong."""
    names = options.names or [entry.name for entry in list_adapters()]
    problems = []
    for name in names:
        try:
            print(verify_adapter(name))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))


def remove(options: argparse.Namespace) -> None:
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(f"nobody can be asked whether '{options.name}' may be removed; add --yes")
        answer = input(f"Remove {options.name} with all that its folder holds? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    print(f"removed {remove_adapter(options.name)}")


def import_checkpoint(options: argparse.Namespace) -> None:
    from engine.commands import import_checkpoint  # takes seconds: PyTorch and more

    import_checkpoint.run(options)


def calibrate(options: argparse.Namespace) -> None:
    from engine.commands import calibrate  # takes seconds: PyTorch and more

    calibrate.run(options)


def _line(entry: Entry) -> str:
    if entry.card is None:
        return f"{entry.name}: {entry.problem}"
    card, origin = entry.card, "shipped" if entry.shipped else "your own"
    about = f"{card.method} {card.placement}".strip()
    return f"{entry.name}: {about} for {card.base}, {origin}; {card.data_set or 'data not stated'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("adapters"), description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    json_help = "print JSON, for programs"

    command = commands.add_parser("list", help="list the adapters that are found by name")
    command.set_defaults(do=show)
    command.add_argument("--json", action="store_true", help=json_help)

    command = commands.add_parser("install", help="install an adapter from a folder, a zip file or the Hub")
    command.set_defaults(do=install)
    command.add_argument(
        "source", metavar="SOURCE", help="folder, zip file, or hf:OWNER/NAME[@REVISION] of the Hugging Face Hub"
    )
    command.add_argument("--name", help="by which it is found (default: that on its card)")
    command.add_argument("--overwrite", action="store_true", help="replace your own adapter of that name")
    command.add_argument("--dry-run", action="store_true", help="check everything, and install nothing")
    command.add_argument("--json", action="store_true", help=json_help)

    command = commands.add_parser("share", help="send an adapter's weights and card to the Hugging Face Hub")
    command.set_defaults(do=share)
    command.add_argument("adapter", metavar="ADAPTER", help="name or folder")
    command.add_argument("name", metavar="hf:OWNER/NAME", help="where to; a repository that is not there is made")
    command.add_argument("--public", action="store_true", help="make it for everybody to see (default: private)")
    command.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")

    command = commands.add_parser("verify", help="check files against their cards, and bases against adapters")
    command.set_defaults(do=verify)
    command.add_argument("names", nargs="*", metavar="NAME", help="default: all")

    command = commands.add_parser("remove", help="remove an adapter of your own")
    command.set_defaults(do=remove)
    command.add_argument("name", metavar="NAME")
    command.add_argument("--yes", action="store_true", help="do not ask")

    _add_import(commands.add_parser("import", help="convert a checkpoint of VLSM-Adapter's code"))
    _add_calibrate(commands.add_parser("calibrate", help="choose the presence threshold on validation images"))
    return parser


def _add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(do=import_checkpoint)
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
    add("--modality", default="", help="of the images, for the card: CT, MR, US, CR, …, or RGB for colour")
    add("--overwrite", action="store_true", help="replace an adapter that is there")


def _add_calibrate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(do=calibrate)
    add = command.add_argument
    add("adapter", metavar="ADAPTER", help="name or folder; its card is rewritten, its weights stay")
    add("--data", type=Path, required=True, help="folder of labelled images with a split for validation")
    add("--drop-overlap", action="store_true", help="leave what two splits share out of the later one")
    add("--base", help="name or folder of the base (default: the adapter's own)")
    add("--device", default="auto", help="auto, cuda, mps or cpu")


if __name__ == "__main__":
    run(main)
