"""What is asked for in a study, and the files that it becomes. Needs no torch."""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.files import check_output
from engine.imaging.formats import LABEL_MAP_SUFFIXES, output_suffix
from engine.imaging.volumes.planes import CHOICES as PLANES
from engine.prompts import check_prompts

BESIDE = Path()  # in place of a file's name: one beside the segments


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
        measurements: a structured report on the segments, which must be DICOM.
        masks, probability: names from which one file a prompt is made: "m.nii.gz" becomes "m_brain.nii.gz".
    """

    segments: Path
    report: Path | None = None
    preview: Path | None = None
    measurements: Path | None = None
    masks: Path | None = None
    probability: Path | None = None

    def paths(self, prompts: tuple[str, ...]) -> list[Path]:
        """Return all files that will be written."""
        single = filter(None, (self.segments, self.report, self.preview, self.measurements))
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


def _file_name(prompt: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in prompt.lower()).strip("-")[:60]
