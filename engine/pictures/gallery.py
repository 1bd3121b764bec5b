"""A picture of several cases side by side, with outlines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.files import replacing
from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.planes import orient, resolve_planes
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.pictures.preview import BACKGROUND, TEXT, draw_legend, draw_slice

TRUTH_COLOR, RESULT_COLOR = (0.2, 0.85, 0.4), (0.95, 0.3, 0.25)
INCHES, MARGIN_INCHES, LINE_INCHES, LEGEND_INCHES = 4.0, 0.12, 0.2, 0.5
JPEG_QUALITIES = (92, 85, 75, 65, 55)  # the first that keeps a picture below the limit is taken
JPEG_BYTES = 150_000


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A case with its segments, and what is written above it; not `outlined`, the same slice without them."""

    title: str
    volume: Volume
    segments: list[Segment]
    outlined: bool = True


def compared(title: str, volume: Volume, truth: np.ndarray, result: np.ndarray) -> Exhibit:
    """Return a case with a reference and a result, each (z, y, x) bool."""
    return Exhibit(
        title, volume, [Segment("reference", truth, TRUTH_COLOR), Segment("result", result, RESULT_COLOR)]
    )


def write_gallery(
    path: Path,
    exhibits: Sequence[Exhibit],
    columns: int,
    inches: float = INCHES,
    legend: bool = False,
    note: str = "",
) -> None:
    """Write a PNG, or a JPEG below 150 kB; of a volume, the axial (or finest) slice that shows most segments.

    Args:
        columns: exhibits in a row.
        inches: width and height of each.
        legend: name the segments of the first exhibit below.
        note: one line at the very bottom, such as whose images these are.

    Raises:
        UserError: the disk is full.
    """
    columns = min(columns, len(exhibits))
    rows = -(-len(exhibits) // columns)
    title_inches = MARGIN_INCHES + LINE_INCHES * max(exhibit.title.count("\n") + 1 for exhibit in exhibits)
    note_inches = LINE_INCHES if note else 0.0
    below = (LEGEND_INCHES if legend else MARGIN_INCHES) + note_inches
    width = columns * (inches + MARGIN_INCHES) + MARGIN_INCHES
    height = rows * (inches + title_inches) + below
    figure = Figure(facecolor=BACKGROUND, figsize=(width, height))
    canvas = FigureCanvasAgg(figure)
    for index, exhibit in enumerate(exhibits):
        row, column = divmod(index, columns)
        left = MARGIN_INCHES + column * (inches + MARGIN_INCHES)
        bottom = height - (row + 1) * (inches + title_inches)
        axes = figure.add_axes((left / width, bottom / height, inches / width, inches / height))
        _draw(axes, exhibit, title_size=10 if inches >= INCHES else 8)
    if legend:
        segments = exhibits[0].segments
        draw_legend(figure, segments, [segment.name for segment in segments], note_inches / height)
    figure.text(0.5, MARGIN_INCHES / 2 / height, note, color=TEXT, fontsize=8, ha="center", parse_math=False)
    with replacing(path) as temporary:
        _print(canvas, temporary)


def _print(canvas: FigureCanvasAgg, path: Path) -> None:
    if path.suffix != ".jpg":
        canvas.print_png(str(path), metadata={"Software": "VLSMSegmenter"})
        return
    for quality in JPEG_QUALITIES:
        canvas.print_jpg(str(path), pil_kwargs={"quality": quality, "optimize": True})
        if path.stat().st_size < JPEG_BYTES:
            return


def _draw(axes, exhibit: Exhibit, title_size: int) -> None:
    plane = resolve_planes(exhibit.volume, "auto")[0]
    union = np.any([segment.mask for segment in exhibit.segments], axis=0)
    areas = orient(union, exhibit.volume, plane).sum(axis=(1, 2))
    position = int(areas.argmax()) if areas.any() else len(areas) // 2
    shown = exhibit.segments if exhibit.outlined else []
    draw_slice(axes, exhibit.volume, shown, intensity_range(exhibit.volume), plane, position)
    axes.set_anchor("N")
    axes.set_title(exhibit.title, color=TEXT, fontsize=title_size, parse_math=False)
