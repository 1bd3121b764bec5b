"""The prompts that were used last, kept in Slicer's settings on this computer."""

import json
from collections.abc import Sequence

import qt

from VLSMSegmenterLib.shared import words

KEY = "VLSMSegmenter/recentPrompts"


def recent() -> list[str]:
    """Return the prompts, the last first."""
    try:
        prompts = json.loads(qt.QSettings().value(KEY, "") or "[]")
    except ValueError:
        return []
    return [prompt for prompt in prompts if isinstance(prompt, str)] if isinstance(prompts, list) else []


def remember(prompts: Sequence[str]) -> None:
    """Put prompts before those that are kept; the oldest fall out."""
    qt.QSettings().setValue(KEY, json.dumps(words.newest_first(prompts, recent())))
