"""Segment a study from its file to its outputs, with a report; the job behind `python -m engine.segment`."""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engine import __version__
from engine.errors import UserError
from engine.files import check_output, read_json, sha256_of, write_text
from engine.imaging.planes import CHOICES as PLANES
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
        exclusive: a voxel belongs to its most probable prompt alone; applied last.
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


def check_request(request: Request) -> None:
    """Refuse a request that no study can meet.

    Raises:
        UserError: a prompt, a threshold, a plane or a size is not valid.
    """
    check_prompts(request.prompts)
    if request.threshold is not None and not 0 < request.threshold < 1:
        raise UserError(f"the threshold is {request.threshold}; give a probability between 0 and 1")
    if not 0 <= request.minimum_ml < math.inf:
        raise UserError(f"the minimum volume is {request.minimum_ml} ml; give a number from 0 on")
    if request.plane is not None and request.plane not in PLANES:
        raise UserError(f"unknown plane '{request.plane}'; there are {', '.join(PLANES)}")


def check_outputs(request: Request, outputs: Outputs, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse outputs that cannot or must not be written, before anything is computed.

    Args:
        inputs: the scans, which no output may replace, whatever `overwrite` says.

    Raises:
        UserError: the format or the name of an output is not valid, or a file is in the way.
    """
    output_suffix(outputs.segments)
    if outputs.probability and output_suffix(outputs.probability) not in (*LABEL_MAP_SUFFIXES, ".png"):
        raise UserError(f"{outputs.probability} cannot hold probabilities; write .nii.gz or .nrrd")
    if outputs.preview and outputs.preview.suffix.lower() != ".png":
        raise UserError(f"{outputs.preview} is no name for a preview; end it with .png")
    check_apart(request, [outputs])
    scans = {path.resolve() for path in inputs}
    for path in outputs.paths(request.prompts):
        if path.resolve() in scans:
            raise UserError(f"{path} is a scan to be segmented; choose another output, or it would be lost")
        check_output(path, overwrite)


def check_apart(request: Request, studies: Iterable[Outputs]) -> None:
    """Refuse outputs of which two would be the same file.

    Raises:
        UserError: two are; the message names the file.
    """
    seen: set[Path] = set()
    for path in (path for outputs in studies for path in outputs.paths(request.prompts)):
        if path in seen:
            raise UserError(f"two outputs would be {path}; rename a scan or a prompt, or ask for less")
        seen.add(path)


def fingerprint(
    path: Path, series: str | None = None, frame: int | str | None = None, resample: bool = False
) -> str:
    """Return a hash that tells whether an input is still the same: names, sizes and times of its files, and what
    is meant in them. It keeps no name, which might be a patient's."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256(repr((series, frame, *(["resample"] if resample else []))).encode())
    for file in files:
        status = file.stat()
        digest.update(os.fsencode(file.name) + f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def segment_study(
    segmenter: Segmenter,
    volume: Volume,
    request: Request,
    outputs: Outputs,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    source: str = "",
) -> dict:
    """Segment all prompts in a volume and write the outputs.

    Args:
        on_progress: called with the step's name, slices done and slices in all; raise `Cancelled` to stop.
        source: the fingerprint of the input, for the report.

    Returns:
        the report, as it is written to `outputs.report`.

    Raises:
        UserError: the volume cannot be segmented as requested, or the outputs cannot be written.
    """
    check_lengths(segmenter.tokenizer, request.prompts)
    check_format(outputs.segments, volume, len(request.prompts), request.exclusive)
    for path in filter(None, (outputs.masks, outputs.probability)):
        check_format(path, volume, 1, exclusive=False)
    started = time.perf_counter()
    segmenter.set_volume(
        volume, request.plane, request.window, lambda done, total: on_progress("encoding", done, total)
    )
    seconds = [time.perf_counter() - started]  # to encode, then for each prompt
    results, masks = [], []
    for prompt in request.prompts:
        started = time.perf_counter()
        result = segmenter.segment(
            prompt, request.threshold, lambda done, total, prompt=prompt: on_progress(prompt, done, total)
        )
        masks.append(clean_mask(result, request))
        wanted = request.exclusive or outputs.probability
        results.append(result if wanted else replace(result, probability=None))  # it is the largest thing here
        seconds.append(time.perf_counter() - started)
    if request.exclusive:
        masks = most_probable(masks, [result.probability for result in results])
    segments = [
        Segment(result.prompt, mask, color, _tags(segmenter, result), segmenter.algorithm)
        for result, mask, color in zip(results, masks, segment_colors(request.prompts), strict=True)
    ]
    report = _report(segmenter, request, results, masks, seconds, source)
    _write(outputs, segmenter, segments, results, report, request)
    return report


def clean_mask(result: Result, request: Request) -> np.ndarray:
    """Return the mask (z, y, x) bool after the clean-up of each mask that was asked for."""
    mask = result.mask()
    if request.keep_largest:
        mask = keep_largest(mask)
    if request.fill_holes:
        mask = fill_holes(mask)
    if request.minimum_ml:
        mask = drop_small(mask, request.minimum_ml, result.volume.voxel_volume_ml)
    return mask


def is_done(outputs: Outputs, segmenter: Segmenter, request: Request, source: str) -> bool:
    """Return whether all outputs were written before, from the same input, with the same request and models."""
    try:
        report = read_json(outputs.report)
        made_by, hashes = report["made_by"], report["outputs_sha256"]
        return made_by == _made_by(segmenter, request, source) and hashes == _hashes(outputs, request)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(outputs: Outputs, segmenter: Segmenter, segments, results, report: dict, request: Request) -> None:
    """Write everything, the report last: where it is, the study is complete."""
    volume = segmenter.volume
    write_segments(outputs.segments, segments, volume)
    for segment, path in zip(segments, per_prompt(outputs.masks, request.prompts), strict=False):
        write_segments(path, [segment], volume)
    for result, path in zip(results, per_prompt(outputs.probability, request.prompts), strict=False):
        write_probability(path, result.probability, volume)
    if outputs.preview:
        captions = [describe(row) for row in report["results"]]
        write_preview(outputs.preview, volume, segments, captions, segmenter.intensity_range)
    if outputs.report:
        report["outputs_sha256"] = _hashes(outputs, request)
        write_text(outputs.report, json.dumps(report, indent=1) + "\n")


def _hashes(outputs: Outputs, request: Request) -> list[str]:
    """Return the SHA-256 of all outputs but the report, which vouches for no others; it keeps no names."""
    return [sha256_of(path) for path in outputs.paths(request.prompts) if path != outputs.report]


def describe(row: dict) -> str:
    """Say a result of a report in words, such as "liver: 1423 ml" or "spleen: not found"."""
    if not row["found"]:
        return f"{row['prompt']}: not found"
    return f"{row['prompt']}: {row['volume_ml']:.4g} ml" if row["voxels"] else f"{row['prompt']}: empty"


def _report(
    segmenter: Segmenter, request: Request, results: list[Result], masks, seconds: list[float], source: str
) -> dict:
    volume = segmenter.volume
    rows = [
        {
            "prompt": result.prompt,
            "found": result.found,
            "presence": round(result.presence, 4),
            "threshold": result.threshold,
            "voxels": int(mask.sum()),
            "volume_ml": round(float(mask.sum() * volume.voxel_volume_ml), 4),
            "seconds": round(elapsed, 3),
        }
        for result, mask, elapsed in zip(results, masks, seconds[1:], strict=True)
    ]
    return {
        "study": {
            "modality": volume.modality,
            "size": list(volume.shape[::-1]),
            "spacing_mm": list(volume.spacing_mm),
        },
        "results": rows,
        "made_by": _made_by(segmenter, request, source),
        "planes": list(segmenter.planes),
        "intensity_range": list(segmenter.intensity_range),
        "device": str(segmenter.device),
        "precision": str(segmenter.model.dtype).removeprefix("torch."),
        "batch_size": segmenter.batch_size,
        "seconds_encoding": round(seconds[0], 3),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _made_by(segmenter: Segmenter, request: Request, source: str) -> dict:
    card = segmenter.card
    return {
        "engine": __version__,
        "input": source,
        "base": {"name": segmenter.base.name, "sha256": segmenter.base.sha256},
        "adapter": {"name": card.name, "sha256": card.sha256} if card else None,
        "presence_threshold": segmenter.presence_threshold,
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
