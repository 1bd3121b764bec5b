"""A picture of a result: slices with coloured outlines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from engine.files import replacing
from engine.imaging.volumes.intensity import to_unit
from engine.imaging.volumes.planes import PLANES, orient, resolve_planes, slice_spacing_mm
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume

BACKGROUND, TEXT = "#101014", "#e8e8ec"
STRIP_SLICES = 6
INCHES_PER_ROW = 3.6


def write_preview(
    path: Path,
    volume: Volume,
    segments: Sequence[Segment],
    captions: Sequence[str],
    limits: tuple[float, float],
) -> None:
    """Write a PNG: the picture itself, or for a volume its three planes through the segments and a strip of
    slices.

    Args:
        captions: what the legend says of each segment.
        limits: the intensities that are drawn black and white.

    Raises:
        UserError: the disk is full.
    """
    figure = Figure(facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    if min(volume.shape) == 1:
        _draw_single(figure, volume, segments, limits)
    else:
        _draw_volume(figure, volume, segments, limits)
    draw_legend(figure, segments, captions)
    with replacing(path) as temporary:
        canvas.print_png(str(temporary), metadata={"Software": "VLSMSegmenter"})


def _draw_single(figure: Figure, volume: Volume, segments: Sequence[Segment], limits: tuple[float, float]) -> None:
    figure.set_size_inches(8, 8.6)
    axes = figure.add_axes((0.02, 0.1, 0.96, 0.88))
    draw_slice(axes, volume, segments, limits, resolve_planes(volume, "auto")[0], 0)


def _draw_volume(figure: Figure, volume: Volume, segments: Sequence[Segment], limits: tuple[float, float]) -> None:
    figure.set_size_inches(12, 2.6 * INCHES_PER_ROW)
    union = np.zeros(volume.shape, bool)
    for segment in segments:
        union |= segment.mask
    grid = figure.add_gridspec(
        2,
        STRIP_SLICES,
        height_ratios=(1.6, 1),
        left=0.02,
        right=0.98,
        top=0.96,
        bottom=0.1,
        wspace=0.04,
        hspace=0.08,
    )
    for index, plane in enumerate(PLANES):
        axes = figure.add_subplot(grid[0, 2 * index : 2 * index + 2])
        draw_slice(axes, volume, segments, limits, plane, _fullest(orient(union, volume, plane)))
        axes.set_title(plane, color=TEXT, fontsize=11)
    plane = resolve_planes(volume, "auto")[0]
    for index, position in enumerate(_spread(orient(union, volume, plane))):
        draw_slice(figure.add_subplot(grid[1, index]), volume, segments, limits, plane, position)


def draw_slice(axes, volume: Volume, segments: Sequence[Segment], limits, plane: str, position: int) -> None:
    """Draw one slice of a plane in its true proportions, with the outlines of the segments."""
    rows_mm, columns_mm = slice_spacing_mm(volume, plane)
    picture = to_unit(orient(volume.voxels, volume, plane)[position], *limits)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=rows_mm / columns_mm, interpolation="bilinear")
    for segment in segments:
        mask = orient(segment.mask, volume, plane)[position]
        if mask.any() and min(mask.shape) > 1:
            framed = np.pad(mask, 1).astype(np.float32)  # so that outlines close at the border
            rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
            axes.contourf(columns, rows, framed, levels=(0.5, 1.5), colors=[segment.color], alpha=0.18)
            axes.contour(columns, rows, framed, levels=(0.5,), colors=[segment.color], linewidths=1.6)
    axes.set_xlim(-0.5, picture.shape[1] - 0.5)
    axes.set_ylim(picture.shape[0] - 0.5, -0.5)
    axes.axis("off")


def _fullest(stack: np.ndarray) -> int:
    """Return the slice that shows most of a mask; the middle one for an empty mask."""
    areas = stack.sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(stack) // 2


def _spread(stack: np.ndarray) -> np.ndarray:
    """Return positions spread evenly over the slices that show a mask, or over all for an empty one."""
    shown = np.flatnonzero(stack.any(axis=(1, 2)))
    first, last = (shown[0], shown[-1]) if len(shown) else (0, len(stack) - 1)
    margin = (last - first) / (2 * STRIP_SLICES)
    return np.linspace(first + margin, last - margin, STRIP_SLICES).round().astype(int)


def draw_legend(figure: Figure, segments: Sequence[Segment], captions: Sequence[str], bottom: float = 0.0) -> None:
    """Write a caption in each segment's colour below the slices, from `bottom` (0..1 of the figure) on."""
    lines = [Line2D([], [], color=segment.color, linewidth=4) for segment in segments]
    legend = figure.legend(
        lines,
        captions,
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncol=min(4, max(1, len(lines))),
        frameon=False,
        fontsize=11,
    )
    for text in legend.get_texts():
        text.set_color(TEXT)
        text.set_parse_math(False)  # a prompt may hold a dollar sign
