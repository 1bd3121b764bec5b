"""Segment a study from its file to its outputs, with a report; the job behind `python -m engine.segment`."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import UserError
from engine.files import make_folder, read_json, sha256_of, write_text
from engine.imaging.volumes.segments import (
    Segment,
    drop_small,
    fill_holes,
    keep_largest,
    most_probable,
    segment_colors,
)
from engine.imaging.volumes.statistics import Statistics, statistics_of
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import check_format, write_probability, write_segments
from engine.prompts import check_lengths
from engine.segmentation.request import Outputs, Request, per_prompt
from engine.version import __version__

if TYPE_CHECKING:
    from engine.segmentation.segmenter import Result, Segmenter

AXES = "lps"  # of places, as columns of a table
PACKAGES = ("torch", "transformers", "SimpleITK", "numpy")


def segment_study(
    segmenter: "Segmenter",
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
    if request.minimum_ml and volume.voxel_volume_ml is None:
        raise UserError(f"{volume.name} does not say how large its voxels are; leave out --min-volume-ml")
    if outputs.measurements and volume.voxel_volume_ml is None:
        raise UserError(f"{volume.name} does not say how large its voxels are; leave out --measurements")
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


def clean_mask(result: "Result", request: Request) -> np.ndarray:
    """Return the mask (z, y, x) bool after the clean-up of each mask that was asked for."""
    mask = result.mask()
    if request.keep_largest:
        mask = keep_largest(mask)
    if request.fill_holes:
        mask = fill_holes(mask)
    if request.minimum_ml:
        mask = drop_small(mask, request.minimum_ml, result.volume.voxel_volume_ml)
    return mask


def is_done(outputs: Outputs, segmenter: "Segmenter", request: Request, source: str) -> bool:
    """Return whether all outputs were written before, from the same input, with the same request and models."""
    try:
        report = read_json(outputs.report)
        made_by, hashes = report["made_by"], report["outputs_sha256"]
        return made_by == _made_by(segmenter, request, source) and hashes == _hashes(outputs, request)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def was_begun(outputs: Outputs, segmenter: "Segmenter", request: Request, source: str) -> bool:
    """Return whether what is there was left by a process that was killed while it wrote these very outputs."""
    try:
        return read_json(outputs.report) == {"made_by": _made_by(segmenter, request, source)}
    except (OSError, ValueError, TypeError):
        return False


def _write(outputs: Outputs, segmenter: "Segmenter", segments, results, report: dict, request: Request) -> None:
    """Write everything, the report last: where it is whole, the study is complete. Before, it says who is at work,
    where nothing was there that belongs to others."""
    volume = segmenter.volume
    for path in outputs.paths(request.prompts):
        make_folder(path.parent)
    if outputs.report and not any(path.exists() for path in outputs.paths(request.prompts)):
        write_text(outputs.report, json.dumps({"made_by": report["made_by"]}) + "\n")
    write_segments(outputs.segments, segments, volume)
    if outputs.measurements:
        from engine.imaging.dicom.report import write_measurements  # highdicom may be missing

        volumes_ml = {row["prompt"]: row["volume_ml"] for row in report["results"]}
        write_measurements(outputs.measurements, outputs.segments, volumes_ml)
    for segment, path in zip(segments, per_prompt(outputs.masks, request.prompts), strict=False):
        write_segments(path, [segment], volume)
    for result, path in zip(results, per_prompt(outputs.probability, request.prompts), strict=False):
        write_probability(path, result.probability, volume)
    if outputs.preview:
        from engine.pictures.preview import write_preview  # matplotlib takes a second to load

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
    return f"{row['prompt']}: {size(row)}"


def size(row: dict) -> str:
    """Say how large a result of a report is: in millilitres, or in voxels where nobody knows their size."""
    if not row["voxels"]:
        return "empty" if row["found"] else "not found"
    return f"{row['voxels']} voxels" if row["volume_ml"] is None else f"{row['volume_ml']:.4g} ml"


def table_row(row: dict) -> dict:
    """Return a row of a table: a place, (L, P, S) in mm or None, becomes three columns, as in "centroid_l_mm"."""
    flat = {}
    for key, value in row.items():
        if key.endswith("_mm"):
            columns = (f"{key.removesuffix('mm')}{axis}_mm" for axis in AXES)
            flat |= dict(zip(columns, value or [None] * len(AXES), strict=True))
        else:
            flat[key] = value
    return flat


def table_columns() -> list[str]:
    """Return the columns of a table of results, in their order."""
    about = ("study", "report", "prompt", "found", "presence", "threshold")
    return list(table_row(dict.fromkeys([*about, *(field.name for field in fields(Statistics))])))


def _report(
    segmenter: "Segmenter", request: Request, results: "list[Result]", masks, seconds: list[float], source: str
) -> dict:
    volume = segmenter.volume
    rows = [
        {
            "prompt": result.prompt,
            "found": result.found,
            "presence": round(result.presence, 4),
            "threshold": result.threshold,
            **_statistics(mask, volume),
            "seconds": round(elapsed, 3),
        }
        for result, mask, elapsed in zip(results, masks, seconds[1:], strict=True)
    ]
    return {
        "study": {
            "modality": volume.modality,
            "size": list(volume.shape[::-1]),
            "spacing_mm": [
                mm if known else None for mm, known in zip(volume.spacing_mm, volume.spacing_known, strict=True)
            ],
        },
        "results": rows,
        "warnings": list(dict.fromkeys(chain.from_iterable(map(segmenter.warnings, request.prompts)))),
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


def _statistics(mask: np.ndarray, volume: Volume) -> dict:
    """Return a mask's statistics for the report, with numbers of six digits."""
    text = json.dumps(asdict(statistics_of(mask, volume)))
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))


def _made_by(segmenter: "Segmenter", request: Request, source: str) -> dict:
    card = segmenter.card
    return {
        "engine": __version__,
        "input": source,
        "base": {"name": segmenter.base.name, "sha256": segmenter.base.sha256},
        "adapter": {"name": card.name, "sha256": card.sha256} if card else None,
        "presence_threshold": segmenter.presence_threshold,
        "request": asdict(request) | {"prompts": list(request.prompts)},
    }


def _tags(segmenter: "Segmenter", result: "Result") -> dict[str, str]:
    card = segmenter.card
    return {
        "VLSMSegmenter.Prompt": result.prompt,
        "VLSMSegmenter.Base": f"{segmenter.base.name} {segmenter.base.sha256[:12]}",
        "VLSMSegmenter.Adapter": f"{card.name} {card.sha256[:12]}" if card else "none",
        "VLSMSegmenter.Threshold": f"{result.threshold:g}",
        "VLSMSegmenter.Presence": f"{result.presence:.3f}",
    }
