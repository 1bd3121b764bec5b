"""Where the user's own models are. Needs no torch, so that Slicer can look."""

import os
from pathlib import Path


def user_models() -> Path:
    """Return the folder of the user's own bases and adapters: VLSM_MODELS, or ~/.vlsm-segmenter/models."""
    return Path(os.environ.get("VLSM_MODELS") or Path.home() / ".vlsm-segmenter" / "models")
