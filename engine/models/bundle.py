"""Adapter bundles: a folder with `adapter.safetensors`, `card.json` and `README.md`."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, get_origin

from safetensors import SafetensorError

from engine.choices import METHODS, VARIANTS
from engine.errors import UserError
from engine.files import check_folder, make_folder, read_json, sha256_of, write_text
from engine.imaging.volumes.planes import CHANNELS, SLICE
from engine.models.places import is_base, model_folders
from engine.models.presence import Rates
from engine.models.weights import write_tensors
from engine.tables import FIGURES, markdown_table, with_interval

if TYPE_CHECKING:
    from torch import nn

    from engine.models.bases import Base
    from engine.nets.prompted import PromptedNet

SCHEMA_VERSION = 1
NEXT_WEIGHTS = ".next.safetensors"  # in a bundle while it is saved
WEIGHTS, CARD, README, PICTURE = "adapter.safetensors", "card.json", "README.md", "picture.jpg"
INSTALLED_FROM = "installed_from"  # in a card's `training`: the name on the Hub, with its commit
UNKNOWN = "not stated"
REASON_SHOWN = 200  # signs of what a library says
LEAST_BYTES = 64  # that a hidden unit takes in a file of weights: a row and a column of at least 16 halves
QUESTIONS = {"plain": "plain class prompt", "random": "random prompts", "wrong": "absent prompts"}


@dataclass(frozen=True)
class AdapterCard:
    """What is known of an adapter; `card.json` holds these fields.

    Attributes:
        method, placement, hidden_size, variant: what `build_model` takes.
        base, base_sha256: the base that it fits, by name and by the hash of its weights.
        plane, window: how volumes are sliced and their intensities mapped when the user does not say.
        channels: "slice": the three channels hold one slice, or its colours; "2.5d": a slice and its neighbours.
        prompts: what it was trained on.
        modality: of the images that it is for, as DICOM names it, such as "MR"; "RGB" for pictures in colour, and
            nothing where it is not stated.
        threshold: of the probability, from which a voxel belongs to the segment.
        presence_threshold: of the presence score, below which a prompt counts as not found.
        presence: data set and split -> how often `presence_threshold` is wrong there (see `presence.Rates`); empty
            where it was not calibrated.
        metrics: data set and split and kind of prompt (see `measured`) -> structure -> figures; of absent prompts,
            the shares of cases and of voxels in which something was found.
        sha256: of `adapter.safetensors`.
    """

    name: str
    method: str
    placement: str
    hidden_size: int
    base: str
    base_sha256: str
    prompts: list[str]
    variant: str = VARIANTS[0]
    modality: str = ""
    plane: str = "auto"
    window: str = "auto"
    channels: str = SLICE
    threshold: float = 0.5
    presence_threshold: float = 0.5
    data_set: str = ""
    licence: str = ""
    intended_use: str = "Research only; not a medical device."
    presence: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    created: str = ""
    engine_version: str = ""
    sha256: str = ""
    schema_version: int = SCHEMA_VERSION


def save_bundle(folder: Path, trained: "nn.Module", card: AdapterCard) -> AdapterCard:
    """Write a bundle with the trained part of a net; return its card with the checksum filled in.

    A process that is killed meanwhile leaves the bundle before, or the new one (see `weights_of`).
    """
    make_folder(folder)
    write_tensors(folder / NEXT_WEIGHTS, trained.state_dict())
    card = replace(card, sha256=sha256_of(folder / NEXT_WEIGHTS))
    (folder / PICTURE).unlink(missing_ok=True)  # it would show what other weights made
    write_card(folder, card)  # from here on the bundle is the new one
    (folder / NEXT_WEIGHTS).replace(folder / WEIGHTS)
    return card


def write_card(folder: Path, card: AdapterCard) -> None:
    """Write `card.json` and `README.md` of a bundle whose weights, and picture if it has one, are there."""
    write_text(folder / CARD, json.dumps(asdict(card), indent=1) + "\n")
    write_text(folder / README, card_for_people(card, (folder / PICTURE).is_file()))


def measured(data_set: str, kind: str) -> str:
    """Return the key of a card's metrics for the test split of a data set and a kind of question (plain, random or
    wrong; see `engine.evaluation.measuring`)."""
    return f"{data_set}, test split, {QUESTIONS[kind]}"


def check_bundle_folder(
    folder: Path, replace_adapter: bool, remedy: str = "add --overwrite to replace it, or --resume to go on"
) -> None:
    """Refuse a folder in which a bundle would replace something else, before any work is spent on it.

    Args:
        replace_adapter: an adapter that is there may be replaced.
        remedy: what to do where it may not.

    Raises:
        UserError: it cannot be written or made, or holds an adapter, a base or files of another kind.
    """
    check_folder(folder)
    if is_base(folder):
        raise UserError(f"{folder} holds a base; give the adapter a folder of its own")
    there = [name for name in (WEIGHTS, CARD, README) if (folder / name).exists()]
    if CARD in there and not replace_adapter:
        raise UserError(f"{folder} holds an adapter already; {remedy}")
    if there and CARD not in there:
        raise UserError(f"{folder} holds a {there[0]} that is no adapter's; give the adapter a folder of its own")


def read_card(folder: Path) -> AdapterCard:
    """Read and check `card.json`.

    Raises:
        UserError: the card is missing, not valid, or of a newer version than this engine knows.
    """
    path = folder / CARD
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); get the adapter again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is not the card of an adapter; get the adapter again")
    if version > SCHEMA_VERSION:
        raise UserError(f"{path} has version {version} and this engine knows {SCHEMA_VERSION}; update the engine")
    wrong = [f.name for f in fields(AdapterCard) if f.name in values and not _fits(values[f.name], f.type)]
    unknown = sorted(values.keys() - {f.name for f in fields(AdapterCard)})
    if wrong or unknown:
        raise UserError(f"{path} has wrong or unknown entries: {', '.join(wrong + unknown)}; get the adapter again")
    try:
        card = AdapterCard(**values)
        card_for_people(card)  # its figures are numbers, and its prompts words
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:REASON_SHOWN]
        raise UserError(f"{path} is incomplete or wrong ({reason}); get the adapter again") from error
    if not (0 < card.threshold < 1 and 0 <= card.presence_threshold <= 1):
        raise UserError(f"{path} has a threshold that is no probability; get the adapter again")
    if card.channels not in CHANNELS:
        raise UserError(f"{path} has channels '{card.channels}'; this engine knows {', '.join(CHANNELS)}")
    return card


def load_model(
    base: "Base", folder: Path | None = None, card: AdapterCard | None = None, network: "nn.Module | None" = None
) -> "PromptedNet":
    """Load a base, with the adapter of a bundle where one is given, in evaluation mode.

    Args:
        folder, card: the bundle and what `read_card` read from it.
        network: the base's, which the model takes over; loaded in fp32 when None.

    Raises:
        UserError: the bundle is damaged, its method is unknown, or it belongs to another base.
    """
    from safetensors.torch import load_file

    from engine.nets.clipseg import CLIPSeg  # the nets load PyTorch, which cards do without
    from engine.nets.methods import build_model

    if folder is None and base.kind != "clipseg":
        raise UserError(f"the base '{base.name}' is a CLIP, which segments nothing by itself; give an adapter")
    if folder is None:
        return CLIPSeg(network or base.load_network()).eval()
    check_base(card, base)
    path = weights_of(folder, card)
    if card.method not in METHODS:
        raise UserError(f"the adapter '{card.name}' is a '{card.method}'; this engine knows {', '.join(METHODS)}")
    if card.hidden_size * LEAST_BYTES > path.stat().st_size:
        raise UserError(f"{path} is too small for the width {card.hidden_size} of its card; get the adapter again")
    try:
        network = network or base.load_network()
        model = build_model(card.method, network, card.placement, card.hidden_size, card.variant)
        model.trained.load_state_dict(load_file(path))
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:REASON_SHOWN]
        raise UserError(f"{path} does not fit its card ({reason}); get the adapter again") from error
    return model.eval()


def weights_of(folder: Path, card: AdapterCard) -> Path:
    """Return the file with the weights that a card describes: where a save was cut off, its next ones.

    Raises:
        UserError: they are missing or others.
    """
    path, following = folder / WEIGHTS, folder / NEXT_WEIGHTS
    for candidate in (path, following):
        if candidate.is_file() and sha256_of(candidate) == card.sha256:
            return candidate
    if not path.is_file():
        raise UserError(f"{path} is missing; get the adapter again")
    raise UserError(f"{path} is not the file that its card describes (checksum differs); get the adapter again")


def check_base(card: AdapterCard, base: "Base") -> None:
    """Refuse a base that the adapter was not trained on.

    Raises:
        UserError: the base's weights differ from those on the card.
    """
    if card.base_sha256 != base.sha256:
        raise UserError(
            f"the adapter '{card.name}' was trained on the base '{card.base}' with weights "
            f"{card.base_sha256[:12]}…, but '{base.name}' has {base.sha256[:12]}…; choose that base with --base, "
            "or train the adapter again on this one"
        )


def find_adapter(name_or_folder: str) -> Path:
    """Return the folder of an adapter.

    Raises:
        UserError: there is no such adapter; the message lists those there are.
    """
    candidates = [Path(name_or_folder), *(folder / name_or_folder for folder in model_folders())]
    for folder in candidates if name_or_folder else []:
        if (folder / CARD).is_file() and not is_base(folder):
            return folder
    raise UserError(
        f"there is no adapter '{name_or_folder}'; there are {', '.join(adapter_names()) or 'none'}, "
        "or give the folder of one"
    )


def adapter_names() -> list[str]:
    """Return the names of the adapters in the model folders."""
    return sorted({p.parent.name for folder in model_folders() for p in folder.glob(f"*/{WEIGHTS}")})


def card_for_people(card: AdapterCard, pictured: bool = False) -> str:
    """Return the card as Markdown; `pictured` says whether a picture lies beside it."""
    example = card.prompts[0] if card.prompts else "PROMPT"
    lines = [
        f"# {card.name}",
        "",
        f"{_method_for_people(card)} for the base `{card.base}`. {card.intended_use}",
        "",
        f'    python -m engine.segment SCAN --prompt "{example}" --adapter {card.name} -o OUT.seg.nrrd',
        "",
        f"- Prompts: {', '.join(card.prompts) or UNKNOWN}",
        f"- Trained on: {card.data_set or UNKNOWN}; modality: {card.modality or UNKNOWN}",
        f"- Licence of the weights: {card.licence or UNKNOWN}",
        f"- Plane: {card.plane}; window: {card.window}; channels: {card.channels}; threshold: {card.threshold}",
        *_presence_for_people(card),
        f"- Created {card.created} by engine {card.engine_version}",
        *_training_for_people(card),
        *_origin_for_people(card),
        "",
    ]
    if pictured:
        lines += [f"![Images above; below, outlines of reference and result]({PICTURE})", ""]
    for name, structures in card.metrics.items():
        columns = ("prompt", *dict.fromkeys(chain(*map(_figures_for_people, structures.values()))))
        rows = [(structure, *_figures_for_people(figures).values()) for structure, figures in structures.items()]
        lines += [f"## {name}", "", markdown_table(columns, rows), ""]
    return "\n".join(lines)


def _presence_for_people(card: AdapterCard) -> list[str]:
    threshold = f'- "Not found" below a presence of {card.presence_threshold:.3g}'
    rates = [f"  - {name}: {Rates(**figures)}" for name, figures in card.presence.items()]
    return [threshold, *rates] if rates else [f"{threshold}, which is not calibrated"]


def _training_for_people(card: AdapterCard) -> list[str]:
    if not {"seconds", "parameters", "device"} <= card.training.keys():
        return []
    trained = "- {parameters:,} parameters, trained in {seconds:,} s on {device}".format(**card.training)
    return [trained, *_protocol_for_people(card)]


def _protocol_for_people(card: AdapterCard) -> list[str]:
    reasons = card.training.get("protocol_reasons") or {}
    if not reasons:
        return []
    lines = [f"  - {name} {card.training.get(name)}: {reason}" for name, reason in reasons.items()]
    return [
        f"- Trained by the protocol `{card.training['protocol']}`, which differs from the product's own in",
        *lines,
    ]


def _origin_for_people(card: AdapterCard) -> list[str]:
    lines = []
    if "imported_from" in card.training:
        origin = "Imported from `{imported_from}` (SHA-256 {imported_sha256}), trained by the code of {code}"
        lines.append(f"- {origin.format(**card.training)}; not measured by this engine")
    if INSTALLED_FROM in card.training:
        lines.append(f"- Installed from `{card.training[INSTALLED_FROM]}`")
    return lines


def _method_for_people(card: AdapterCard) -> str:
    details = [card.placement, f"width {card.hidden_size}" if card.hidden_size else ""]
    details += [card.variant] if card.variant != VARIANTS[0] else []
    return (
        f"Method `{card.method}` ({', '.join(filter(None, details))})"
        if any(details)
        else f"Method `{card.method}`"
    )


def _figures_for_people(figures: dict) -> dict[str, str]:
    """Return {column: text}."""
    texts = {column: with_interval(figures, *figure) for column, figure in FIGURES.items()}
    if "false_positive_rate" in figures:
        texts["cases with something found"] = f"{figures['false_positive_rate']:.1%}"
        texts["voxels found"] = f"{figures['false_positive_share']:.1%}"
    return texts | {"cases": str(figures["cases"])}


def _fits(value: object, kind: type) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
