"""The prompts that were used last, kept in Slicer's settings on this computer."""

import json
from collections.abc import Sequence

import qt

KEY = "VLSMSegmenter/recentPrompts"
LONGEST = 20


def recent() -> list[str]:
    """Return the prompts, the last first."""
    try:
        prompts = json.loads(qt.QSettings().value(KEY, "") or "[]")
    except ValueError:
        return []
    return [prompt for prompt in prompts if isinstance(prompt, str)] if isinstance(prompts, list) else []


def remember(prompts: Sequence[str]) -> None:
    """Put prompts before those that are kept; the oldest fall out."""
    kept = list(dict.fromkeys([*prompts, *recent()]))[:LONGEST]
    qt.QSettings().setValue(KEY, json.dumps(kept))
