"""Prompts from text, and results in words."""

import math
import re
from collections.abc import Sequence

SECONDS_A_MINUTE = 60
ALL_STRUCTURES = "(all)"  # in the metrics of a card
COLOUR = "RGB"
MOST_RECENT = 20  # prompts that are remembered
ALIKE = (  # DICOM's words for images that look alike
    {"CR", "DX", "RG", "RF", "PX"},
    {"US", "IVUS"},
    {COLOUR, "ES", "XC", "GM", "SM", "OP", "DMS"},
)


def split_prompts(text: str) -> list[str]:
    """Return the prompts of a text: one a line, or several with `;` between them; each once."""
    prompts = (" ".join(part.split()) for part in re.split(r"[;\n]", text))
    return list(dict.fromkeys(prompt for prompt in prompts if prompt))


def newest_first(prompts: Sequence[str], recent: Sequence[str]) -> list[str]:
    """Put prompts before those that were used recently; the oldest fall out."""
    return list(dict.fromkeys([*prompts, *recent]))[:MOST_RECENT]


def number(value: float) -> str:
    """Return a number with three digits that say something, and spaces between thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}".replace(",", " ") if value < 100 else f"{value:,.0f}".replace(",", " ")


def size(voxels: int, voxel_volume_ml: float | None, flat: bool) -> str:
    """Return how large something is: in millilitres, in pixels where there is a single slice, or in voxels where
    nobody knows their size."""
    if flat or voxel_volume_ml is None:
        return f"{number(voxels)} {'pixels' if flat else 'voxels'}"
    return f"{number(voxels * voxel_volume_ml)} ml"


def duration(seconds: float) -> str:
    if seconds < SECONDS_A_MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"
    return f"{int(seconds // SECONDS_A_MINUTE)} min {int(seconds % SECONDS_A_MINUTE)} s"


def device(name: str) -> str:
    """Return a device of PyTorch as people say it."""
    return {"cpu": "CPU", "cuda": "GPU", "mps": "GPU"}.get(name.split(":")[0], name)


def progress(event: dict) -> str:
    """Return one of the events of a job in words."""
    state, done, total = event["state"], event.get("done", 0), event.get("total", 0)
    if state == "waiting":
        ahead = event.get("ahead", 0)
        return f"waiting for {ahead} other job{'s' if ahead > 1 else ''}" if ahead else "about to begin"
    left = event.get("seconds_left")
    rest = f", about {duration(math.ceil(left))} left" if left else ""
    words = {
        "starting": "starting the engine (the first time takes a while)",
        "sending": f"sending the volume: {100 * done // max(total, 1)} %",
        "loading": "loading the model",
        "encoding": f"looking at slices: {done} of {total}{rest}",
        "decoding": f"segmenting: {done} of {total} slices{rest}",
        "done": "fetching the result",
    }
    return words.get(state, state)


def training(event: dict) -> str:
    """Return one of the events of a training in words."""
    state = event["state"]
    if state == "writing":
        return f"writing volume {event['done'] + 1} of {event['total']}"
    if state == "starting":
        return "starting the training"
    so_far = event["progress"]
    if so_far is None:
        return f"epoch 1 of at most {event['total']}; the time left is known after it"
    return (
        f"epoch {min(so_far.epochs_done + 1, so_far.epochs)} of at most {so_far.epochs}, "
        f"loss {so_far.training_loss:.3f}, best Dice {so_far.best_dice:.3f}, "
        f"at most {duration(math.ceil(so_far.seconds_left))} left"
    )


def dice(card: dict) -> str:
    """Return the Dice of the first data set that an adapter was tested on, over all its structures; "" for none."""
    structures = next(iter(card.get("metrics", {}).values()), {})
    alone = next(iter(structures.values())) if len(structures) == 1 else {}
    figures = structures.get(ALL_STRUCTURES, alone)
    return f"{figures['dice']:.2f}" if "dice" in figures else ""


def modality_warning(wanted: str, seen: str | None, in_colour: bool) -> str:
    """Return a warning where a volume is not of the kind that an adapter is for; "" where it is, or none can tell.

    Args:
        wanted: the modality on the adapter's card.
        seen: the volume's in DICOM, where it is known.
        in_colour: its voxels are colours.
    """
    alike = next((group for group in ALIKE if wanted in group), {wanted})
    if not wanted or (seen or (COLOUR if in_colour else "")) in alike:
        return ""
    if seen:
        return f"This adapter is for {wanted}, and this volume is {seen}: do not trust what it finds."
    if in_colour and wanted not in ("US", "IVUS"):  # which is often kept as colours
        return f"This adapter is for {wanted}, and this volume is in colour: do not trust what it finds."
    if not in_colour and COLOUR in alike:
        return "This adapter is for pictures in colour, and this volume is grey: do not trust what it finds."
    return ""
