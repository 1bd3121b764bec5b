"""What the check of a data set found, for people: tables in Markdown, JSON and a contact sheet."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.choices import SPLITS
from engine.data.checking import Image, Mask, Report, choose_masks, read_masks
from engine.files import make_folder, write_text
from engine.imaging.volumes.segments import Segment, segment_colors
from engine.pictures.gallery import Exhibit, write_gallery
from engine.tables import markdown_table

TILES, COLUMNS, TILE_INCHES = 24, 6, 2.7
MOST_PROMPTS, MOST_PROBLEMS = 12, 30  # in the tables; the JSON has all
IMAGES = ("split", "images", "colours", "smallest", "median", "largest", "spacing in mm", "masks")
STRUCTURES = ("split", "structure", "masks", "empty", "slices", "smallest", "median", "largest", "wordings")


def write_report(output: Path, report: Report, planes: tuple[str, ...], channels: str) -> list[Path]:
    """Write report.md, report.json and, where a mask could be read, contact_sheet.png; return what was written.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(output)
    paths = [output / "report.md", output / "report.json"]
    write_text(paths[0], markdown(report) + "\n")
    write_text(paths[1], json.dumps(report.as_json(), indent=1) + "\n")
    if report.masks:
        paths.append(output / "contact_sheet.png")
        _write_contact_sheet(paths[-1], report, planes, channels)
    return paths


def markdown(report: Report, most_problems: int | None = None) -> str:
    """Return the findings as Markdown; the problems come last, `most_problems` of them."""
    lines = [f"# {Path(report.folder).name}", ""]
    if report.images:
        lines += [markdown_table(IMAGES, _image_rows(report)), ""]
    if report.masks:
        lines += ["## Structures, with their shares of the image", ""]
        lines += [markdown_table(STRUCTURES, _structure_rows(report)), ""]
    lines += [*_prompts(report), *_remarks(report)]
    if not report.problems:
        return "\n".join([*lines, "No problems."])
    shown = report.problems[:most_problems]
    lines += [f"## {len(report.problems)} problem(s)", ""]
    lines += [f"- {problem.split}: {problem.message}" for problem in shown]
    if len(shown) < len(report.problems):
        lines.append(f"- … and {len(report.problems) - len(shown)} more in report.md")
    return "\n".join(lines)


def _image_rows(report: Report) -> list[list[object]]:
    rows = []
    for split in SPLITS:
        images = [image for image in report.images if image.split == split]
        masks = [mask for mask in report.masks if mask.split == split]
        if images:
            rows.append([split, len(images), _colours(images), *_sizes(images), _spacings(images), len(masks)])
    return rows


def _colours(images: Sequence[Image]) -> str:
    colour = sum(image.colour for image in images)
    if colour in (0, len(images)):
        return "colour" if colour else "grey"
    return f"{len(images) - colour} grey, {colour} colour"


def _sizes(images: Sequence[Image]) -> list[str]:
    ordered = sorted((image.size for image in images), key=np.prod)
    chosen = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return ["×".join(map(str, size[:2] if images[0].flat else size)) for size in chosen]


def _spacings(images: Sequence[Image]) -> str:
    if images[0].flat:
        return ""
    spacings = np.array([image.spacing_mm for image in images])
    ranges = zip(spacings.min(axis=0), spacings.max(axis=0), strict=True)
    return "×".join(
        f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}–{high:.3g}" for low, high in ranges
    )


def _structure_rows(report: Report) -> list[list[object]]:
    rows = []
    for split in SPLITS:
        for structure, masks in report.structures(split).items():
            shares = [mask.share for mask in masks if mask.share] or [0.0]
            sizes = [_percent(value) for value in (min(shares), float(np.median(shares)), max(shares))]
            empty, slices = sum(not mask.share for mask in masks), sum(mask.slices for mask in masks)
            slices = "" if all(image.flat for image in report.images) else slices
            wordings = {wording for mask in masks for wording in mask.wordings}
            rows.append([split, structure, len(masks), empty, slices, *sizes, len(wordings)])
    return rows


def _prompts(report: Report) -> list[str]:
    counts = report.wordings("train")
    lines = [f"- {wording}: {count}" for wording, count in counts.most_common(MOST_PROMPTS)]
    more = [f"- … and {len(counts) - len(lines)} more in report.json"] if len(counts) > len(lines) else []
    return ["## Prompts for training, with the masks that they describe", "", *lines, *more, ""] if lines else []


def _remarks(report: Report) -> list[str]:
    return ["## Remarks", "", *(f"- {line}" for line in report.remarks), ""] if report.remarks else []


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.0f} %"


def _write_contact_sheet(path: Path, report: Report, planes: tuple[str, ...], channels: str) -> None:
    chosen = choose_masks(report.masks, TILES)
    names = sorted({mask.structure for mask in report.masks})
    colors = dict(zip(names, segment_colors(names), strict=True))
    exhibits = [
        Exhibit(_caption(mask), volume, [Segment(mask.structure, voxels, colors[mask.structure])])
        for mask, volume, voxels in read_masks(Path(report.folder), chosen, planes, channels)
    ]
    write_gallery(path, exhibits, COLUMNS, TILE_INCHES)


def _caption(mask: Mask) -> str:
    size = _percent(mask.share) if mask.share else "empty"
    return f"{_short(mask.structure, 42)}\n{mask.split} · {_short(mask.case, 26, tail=True)} · {size}"


def _short(text: str, length: int, tail: bool = False) -> str:
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if tail else f"{text[: length - 1]}…"
