"""Segment the MNI152 head, and print and draw what was found."""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.cli import progress_bar
from engine.data.head import HEAD, PUBLISHED, head_folder, published_mask
from engine.evaluation.metrics import dice
from engine.files import check_folder, replacing
from engine.imaging.reading import read_volume
from engine.segmentation.request import Outputs, Request, per_prompt
from engine.segmentation.segmenter import Segmenter
from engine.segmentation.studies import segment_study

ADAPTER = "head-t1"
PROMPTS = ("brain", "grey matter", "white matter", "polyp")


def run(options: argparse.Namespace) -> None:
    check_folder(options.output)
    outputs = Outputs(
        options.output / "head.seg.nrrd",
        report=options.output / "head.json",
        preview=options.output / "head.png",
        masks=options.output / "head.nii.gz",
    )
    print("Segmenting the MNI152 head (T1, skull removed) with the base 'mini' and the adapter 'head-t1'")
    segmenter = Segmenter(ADAPTER, device=options.device)
    with progress_bar("encoding", 1) as update:
        report = segment_study(
            segmenter,
            read_volume(head_folder() / HEAD.format("t1")),
            Request(PROMPTS),
            outputs,
            lambda step, done, total: update(done, description=step, total=total),
        )
    scores = {prompt: published_dice(outputs, prompt) for prompt in PUBLISHED}
    _print_table(report, scores)
    scan = options.output / "mni152.nii.gz"
    with replacing(scan) as temporary:
        shutil.copyfile(head_folder() / HEAD.format("t1"), temporary)
    print(f"look at {outputs.preview}; open {scan} and {outputs.segments} in 3D Slicer")
    print(f"in a browser: {_view_command(scan, outputs.segments)}")


def _view_command(scan: Path, segments: Path) -> str:
    """Return the line that shows the result in a browser; `make` sets the viewer up where it is not installed."""
    if find_spec("trame_slicer") is None:
        return "make view"
    return f"python -m engine.view {scan} --segments {segments} --adapter {ADAPTER}"


def published_dice(outputs: Outputs, prompt: str) -> float:
    """Compare the written mask of a prompt with the published maps of its tissues, from 50 % on."""
    truth = published_mask(prompt)
    result = read_volume(per_prompt(outputs.masks, (prompt,))[0]).voxels > 0
    return dice(int((result & truth).sum()), int(result.sum()), int(truth.sum()))


def _print_table(report: dict, scores: dict[str, float]) -> None:
    table = Table("prompt", "volume (ml)", "presence", "Dice against the published map", "seconds")
    for row in report["results"]:
        volume = f"{row['volume_ml']:.0f}" if row["found"] else "not found"
        score = f"{scores[row['prompt']]:.3f}" if row["prompt"] in scores else ""
        table.add_row(row["prompt"], volume, f"{row['presence']:.2f}", score, f"{row['seconds']:.1f}")
    Console().print(table)
    print(f"{report['seconds_encoding']:.1f} s to encode the scan, on {report['device']} in {report['precision']}")
