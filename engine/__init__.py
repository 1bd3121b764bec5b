"""Text-prompted segmentation of medical images: a frozen CLIPSeg with small adapters.

    from engine import Segmenter, read_volume

The names are loaded when they are first used, so that `import engine` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING

from engine.version import __version__

if TYPE_CHECKING:
    from engine.errors import UserError
    from engine.imaging.reading import read_volume
    from engine.imaging.volumes.volume import Volume
    from engine.imaging.writing import write_segments
    from engine.segmentation.segmenter import Segmenter

# PyTorch's threads wait for each other by turning in circles; where other programs want the cores, that takes many
# times as long as the work. So they turn for a moment only. GNU's OpenMP reads this when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Nothing about this computer or its user is told to anybody: the Hub's library would with each request.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Segmenter": "engine.segmentation.segmenter",
    "Volume": "engine.imaging.volumes.volume",
    "read_volume": "engine.imaging.reading",
    "write_segments": "engine.imaging.writing",
    "UserError": "engine.errors",
}
__all__ = ["Segmenter", "UserError", "Volume", "__version__", "read_volume", "write_segments"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
