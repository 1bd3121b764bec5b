"""Segment a study from its file to its outputs, with a report; the job behind `python -m engine.segment`."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine import __version__
from engine.errors import UserError
from engine.files import check_output, write_text
from engine.imaging.segments import Segment, drop_small, fill_holes, keep_largest, most_probable, segment_colors
from engine.imaging.volume import Volume
from engine.imaging.writing import (
    LABEL_MAP_SUFFIXES,
    check_format,
    output_suffix,
    write_probability,
    write_segments,
)
from engine.preview import write_preview
from engine.prompts import check_lengths, check_prompts
from engine.segmenter import Result, Segmenter

PACKAGES = ("torch", "transformers", "SimpleITK", "numpy")


@dataclass(frozen=True)
class Request:
    """What to segment, and how to clean it up.

    Attributes:
        plane, window, threshold: the adapter's own when None (see `Segmenter`).
        keep_largest, fill_holes, minimum_ml: applied to each mask, in this order.
        exclusive: a voxel belongs to its most probable prompt alone.
    """

    prompts: tuple[str, ...]
    plane: str | None = None
    window: str | None = None
    threshold: float | None = None
    keep_largest: bool = False
    fill_holes: bool = False
    minimum_ml: float = 0.0
    exclusive: bool = False


@dataclass(frozen=True)
class Outputs:
    """The files of one study; None for those that are not wanted.

    Attributes:
        masks, probability: names from which one file a prompt is made: "m.nii.gz" becomes "m_brain.nii.gz".
    """

    segments: Path
    report: Path | None = None
    preview: Path | None = None
    masks: Path | None = None
    probability: Path | None = None

    def paths(self, prompts: tuple[str, ...]) -> list[Path]:
        """Return all files that will be written."""
        single = [path for path in (self.segments, self.report, self.preview) if path]
        return [*single, *per_prompt(self.masks, prompts), *per_prompt(self.probability, prompts)]


def per_prompt(path: Path | None, prompts: tuple[str, ...]) -> list[Path]:
    """Return one file name a prompt, such as "m_left-lung.nii.gz" from "m.nii.gz"; none for no path."""
    if path is None:
        return []
    suffix = output_suffix(path)
    stem = path.name[: -len(suffix)]
    return [path.with_name(f"{stem}_{_file_name(prompt)}{suffix}") for prompt in prompts]


def check_request(request: Request, outputs: Outputs, overwrite: bool) -> None:
    """Refuse what cannot succeed, before anything is loaded or computed.

    Raises:
        UserError: a prompt, a threshold, a size or an output path is not valid.
    """
    check_prompts(request.prompts)
    if request.threshold is not None and not 0 < request.threshold < 1:
        raise UserError(f"the threshold is {request.threshold}; give a probability between 0 and 1")
    if request.minimum_ml < 0:
        raise UserError(f"the minimum volume is {request.minimum_ml} ml; it cannot be negative")
    output_suffix(outputs.segments)
    if outputs.probability and output_suffix(outputs.probability) not in (*LABEL_MAP_SUFFIXES, ".png"):
        raise UserError(f"{outputs.probability} cannot hold probabilities; write .nii.gz or .nrrd")
    paths = outputs.paths(request.prompts)
    if len({*paths}) < len(paths):
        raise UserError("two outputs would be the same file; name them apart")
    for path in paths:
        check_output(path, overwrite)


def segment_study(
    segmenter: Segmenter,
    volume: Volume,
    request: Request,
    outputs: Outputs,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> dict:
    """Segment all prompts in a volume and write the outputs.

    Args:
        on_progress: called with the step's name, slices done and slices in all; raise `Cancelled` to stop.

    Returns:
        the report, as it is written to `outputs.report`.

    Raises:
        UserError: the volume cannot be segmented as requested, or the outputs cannot be written.
    """
    check_lengths(segmenter.tokenizer, request.prompts)
    check_format(outputs.segments, volume, len(request.prompts), request.exclusive)
    for path in filter(None, (outputs.masks, outputs.probability)):
        check_format(path, volume, 1, exclusive=False)
    seconds = {}
    started = time.perf_counter()
    segmenter.set_volume(
        volume, request.plane, request.window, lambda done, total: on_progress("encoding", done, total)
    )
    seconds["encoding"] = time.perf_counter() - started
    results = []
    for prompt in request.prompts:
        started = time.perf_counter()
        results.append(
            segmenter.segment(
                prompt, request.threshold, lambda done, total, prompt=prompt: on_progress(prompt, done, total)
            )
        )
        seconds[prompt] = time.perf_counter() - started
    masks = clean_masks(results, request)
    segments = [
        Segment(result.prompt, mask, color, _tags(segmenter, result))
        for result, mask, color in zip(results, masks, segment_colors(request.prompts), strict=True)
    ]
    report = _report(segmenter, volume, request, results, masks, seconds)
    _write(outputs, volume, segments, results, report, request)
    return report


def clean_masks(results: list[Result], request: Request) -> list[np.ndarray]:
    """Return the masks (z, y, x) bool after the clean-up that was asked for."""
    masks = [result.mask() for result in results]
    if request.exclusive:
        masks = most_probable(masks, [result.probability for result in results])
    if request.keep_largest:
        masks = [keep_largest(mask) for mask in masks]
    if request.fill_holes:
        masks = [fill_holes(mask) for mask in masks]
    if request.minimum_ml:
        masks = [drop_small(mask, request.minimum_ml, results[0].volume.voxel_volume_ml) for mask in masks]
    return masks


def is_done(outputs: Outputs, segmenter: Segmenter, request: Request) -> bool:
    """Return whether a study was finished before, with the same request, base and adapter."""
    try:
        report = json.loads(outputs.report.read_text(encoding="utf-8"))
        return outputs.segments.is_file() and report["made_by"] == _made_by(segmenter, request)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(outputs: Outputs, volume: Volume, segments, results, report: dict, request: Request) -> None:
    """Write everything, the report last: where it is, the study is complete."""
    write_segments(outputs.segments, segments, volume)
    for segment, path in zip(segments, per_prompt(outputs.masks, request.prompts), strict=False):
        write_segments(path, [segment], volume)
    for result, path in zip(results, per_prompt(outputs.probability, request.prompts), strict=False):
        write_probability(path, result.probability, volume)
    if outputs.preview:
        captions = [describe(row) for row in report["results"]]
        write_preview(outputs.preview, volume, segments, captions, request.window or "auto")
    if outputs.report:
        write_text(outputs.report, json.dumps(report, indent=1) + "\n")


def describe(row: dict) -> str:
    """Say a result of a report in words, such as "liver: 1423 ml" or "spleen: not found"."""
    if not row["found"]:
        return f"{row['prompt']}: not found"
    return f"{row['prompt']}: {row['volume_ml']:.4g} ml" if row["voxels"] else f"{row['prompt']}: empty"


def _report(segmenter: Segmenter, volume: Volume, request: Request, results, masks, seconds: dict) -> dict:
    rows = [
        {
            "prompt": result.prompt,
            "found": result.found,
            "presence": round(result.presence, 4),
            "threshold": result.threshold,
            "voxels": int(mask.sum()),
            "volume_ml": round(float(mask.sum() * volume.voxel_volume_ml), 4),
            "seconds": round(seconds[result.prompt], 3),
        }
        for result, mask in zip(results, masks, strict=True)
    ]
    return {
        "study": {
            "name": volume.name,
            "modality": volume.modality,
            "size": list(volume.shape[::-1]),
            "spacing_mm": list(volume.spacing_mm),
        },
        "results": rows,
        "made_by": _made_by(segmenter, request),
        "device": str(segmenter.device),
        "precision": str(segmenter.model.dtype).removeprefix("torch."),
        "batch_size": segmenter.batch_size,
        "seconds_encoding": round(seconds["encoding"], 3),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _made_by(segmenter: Segmenter, request: Request) -> dict:
    card = segmenter.card
    return {
        "engine": __version__,
        "base": {"name": segmenter.base.name, "sha256": segmenter.base.sha256},
        "adapter": {"name": card.name, "sha256": card.sha256} if card else None,
        "request": asdict(request) | {"prompts": list(request.prompts)},
    }


def _tags(segmenter: Segmenter, result: Result) -> dict[str, str]:
    card = segmenter.card
    return {
        "VLSMSegmenter.Prompt": result.prompt,
        "VLSMSegmenter.Base": f"{segmenter.base.name} {segmenter.base.sha256[:12]}",
        "VLSMSegmenter.Adapter": f"{card.name} {card.sha256[:12]}" if card else "none",
        "VLSMSegmenter.Threshold": f"{result.threshold:g}",
        "VLSMSegmenter.Presence": f"{result.presence:.3f}",
    }


def _file_name(prompt: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in prompt.lower()).strip("-")[:60]
