"""A picture of several cases side by side, with outlines of the reference and of the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.files import replacing
from engine.imaging.intensity import intensity_range
from engine.imaging.planes import orient, resolve_planes
from engine.imaging.segments import Segment
from engine.imaging.volume import Volume
from engine.preview import BACKGROUND, TEXT, draw_legend, draw_slice

TRUTH_COLOR, RESULT_COLOR = (0.2, 0.85, 0.4), (0.95, 0.3, 0.25)
INCHES = 4.0


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A case with its masks, each (z, y, x) bool, and what is written above it."""

    title: str
    volume: Volume
    truth: np.ndarray
    result: np.ndarray


def write_gallery(path: Path, exhibits: Sequence[Exhibit]) -> None:
    """Write a PNG; of a volume, the axial (or finest) slice that shows most of the reference.

    Raises:
        UserError: the disk is full.
    """
    figure = Figure(facecolor=BACKGROUND, figsize=(INCHES * len(exhibits), INCHES + 0.8))
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, len(exhibits), left=0.02, right=0.98, top=0.9, bottom=0.1, wspace=0.04)
    for index, exhibit in enumerate(exhibits):
        axes = figure.add_subplot(grid[0, index])
        segments = _segments(exhibit)
        plane = resolve_planes(exhibit.volume, "auto")[0]
        areas = orient(exhibit.truth | exhibit.result, exhibit.volume, plane).sum(axis=(1, 2))
        position = int(areas.argmax()) if areas.any() else len(areas) // 2
        draw_slice(axes, exhibit.volume, segments, intensity_range(exhibit.volume), plane, position)
        axes.set_title(exhibit.title, color=TEXT, fontsize=10, parse_math=False)
    draw_legend(figure, segments, [segment.name for segment in segments])
    with replacing(path) as temporary:
        canvas.print_png(str(temporary), metadata={"Software": "VLSMSegmenter"})


def _segments(exhibit: Exhibit) -> list[Segment]:
    return [Segment("reference", exhibit.truth, TRUTH_COLOR), Segment("result", exhibit.result, RESULT_COLOR)]
