"""Convert a checkpoint of the paper's own code into an adapter."""

import argparse
from datetime import date
from pathlib import Path

from engine.errors import UserError
from engine.models.bases import open_base
from engine.models.bundle import AdapterCard, check_bundle_folder, save_bundle
from engine.models.converting import convert, read_checkpoint
from engine.models.places import user_models
from engine.prompts import check_prompts
from engine.version import __version__


def run(options: argparse.Namespace) -> None:
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
        variant=converted.variant,
        base=base.name,
        base_sha256=base.sha256,
        prompts=options.prompts,
        threshold=checkpoint.threshold,
        data_set=options.data_set,
        licence=options.licence,
        modality=options.modality,
        training={
            "code": "DerrickWang005/CRIS.pytorch" if converted.method == "cris" else "naamiinepal/vlsm-adapter",
            "imported_from": checkpoint.path.name,
            "imported_sha256": checkpoint.sha256,
            "parameters": parameters,
            "base_checked": converted.base_checked,
        },
        created=date.today().isoformat(),
        engine_version=__version__,
    )
    save_bundle(output, converted.adapter, card)
    kind = f"{card.method} {card.placement}".strip() + (f", width {card.hidden_size}" if card.hidden_size else "")
    print(f"wrote {output}: {kind}, {parameters:,} parameters, for the base '{base.name}'")
    if not converted.base_checked:
        print(f"the checkpoint holds the adapter alone: whether it was trained on '{base.name}' cannot be checked")
