"""Segment scans by text prompts: one scan into one file, or many into a folder through one warm model."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.cli import progress_bar, run
from engine.devices import PRECISIONS
from engine.errors import UserError
from engine.files import check_output, write_csv
from engine.imaging import dicomweb
from engine.imaging.intensity import CHOICES as WINDOWS
from engine.imaging.planes import CHOICES as PLANES
from engine.imaging.reading import find_studies, image_suffix, read_frames, read_volume
from engine.imaging.volume import Volume
from engine.imaging.writing import SUFFIXES, output_suffix
from engine.prompts import split_prompts
from engine.segmenter import Segmenter
from engine.studies import (
    Outputs,
    Request,
    check_apart,
    check_outputs,
    check_request,
    fingerprint,
    is_done,
    segment_study,
)

SUMMARY = "summary.csv"  # in an output folder: how each study ended
BESIDE = Path()  # an option that was given without a file name


@dataclass(frozen=True)
class End:
    """How a study of many ended: "done", now or in an earlier run, or "failed" for a reason."""

    study: str
    state: str
    reason: str


def main() -> None:
    options = _parser().parse_args()
    request = _request(options)
    check_request(request)
    with ExitStack() as stack:
        options.input = [
            stack.enter_context(dicomweb.fetched(place)) if isinstance(place, str) else place
            for place in options.input
        ]
        _segment(request, options)


def _segment(request: Request, options: argparse.Namespace) -> None:
    for path in options.input:
        if not path.exists():
            raise UserError(f"{path} does not exist")
    if options.output.is_dir():
        _segment_many(request, options)
    elif len(options.input) > 1:
        raise UserError(f"{len(options.input)} inputs need an output folder that exists; {options.output} is none")
    elif not options.output.name.lower().endswith(SUFFIXES):
        raise UserError(f"{options.output} is no folder that exists, nor has it a suffix ({', '.join(SUFFIXES)})")
    else:
        _segment_one(request, options)


def _segment_one(request: Request, options: argparse.Namespace) -> None:
    stem = options.output.name[: -len(output_suffix(options.output))]
    report = BESIDE if options.resume and options.report is None else options.report
    outputs = Outputs(
        options.output,
        report=_named(report, options.output.with_name(f"{stem}.json")),
        preview=_named(options.preview, options.output.with_name(f"{stem}.png")),
        masks=_named(options.masks, options.output.with_name(f"{stem}.nii.gz")),
        probability=_named(options.probability, options.output.with_name(f"{stem}_probability.nii.gz")),
    )
    path = options.input[0]
    if options.frame != "all" and not options.resume:
        check_outputs(request, outputs, options.overwrite, [path])
    _segment_study(_segmenter(options), request, path, outputs, [path], options)


def _segment_many(request: Request, options: argparse.Namespace) -> None:
    for name in ("report", "preview", "masks", "probability"):
        if getattr(options, name) not in (None, BESIDE):
            raise UserError(f"with an output folder, --{name} takes no file name; each study gets its own")
    output = options.output.resolve()
    if any(folder == output or folder in output.parents for folder in (p.resolve() for p in options.input)):
        raise UserError(f"{options.output} lies among the scans; choose another folder, or results become scans")
    studies = _named_studies(options.input)
    outputs = {name: _outputs_in(options, name) for name in studies}
    check_apart(request, outputs.values())
    summary = options.output / SUMMARY
    check_output(summary, options.overwrite or options.resume)
    segmenter = _segmenter(options)
    ends: list[End] = []
    for number, (name, path) in enumerate(studies.items(), start=1):
        print(f"{number} / {len(studies)} {name}")
        reason = ""
        try:
            _segment_study(segmenter, request, path, outputs[name], studies.values(), options)
        except UserError as error:
            reason = str(error)
        except Exception as error:  # whatever is wrong with one study, the others are still wanted
            reason = f"{path} gave an unexpected {type(error).__name__}: {error}"
        if reason:
            print(f"failed: {reason}", file=sys.stderr)
        ends.append(End(name, "failed" if reason else "done", " ".join(reason.split())))
    write_csv(summary, ends)
    failed = sum(end.state == "failed" for end in ends)
    if failed:
        raise UserError(f"{failed} of {len(studies)} studies failed, as {summary} lists; the others are done")


def _segment_study(
    segmenter: Segmenter,
    request: Request,
    path: Path,
    outputs: Outputs,
    inputs: Iterable[Path],
    options: argparse.Namespace,
) -> None:
    """Segment one study, or each frame of it, unless --resume finds it done."""
    source = fingerprint(path, options.series, options.frame, options.resample)
    if options.resume and is_done(outputs, segmenter, request, source):
        print("done before")
        return
    frames = [
        (volume, frame_outputs)
        for volume, frame_outputs in _frames(path, outputs, options)
        if not (options.resume and is_done(frame_outputs, segmenter, request, source))
    ]
    for volume, frame_outputs in frames:
        check_outputs(request, frame_outputs, options.overwrite, [*inputs, *volume.sources])
    for volume, frame_outputs in frames:
        with progress_bar("encoding", 1) as update:
            report = segment_study(
                segmenter,
                volume,
                request,
                frame_outputs,
                lambda step, done, total: update(done, description=step, total=total),
                source,
            )
        segmenter.forget_volume()  # before the next one is read; no volume comes twice
        segmenter.cache.clear()
        _print_report(report)
        print(f"wrote {frame_outputs.segments}")


def _print_report(report: dict) -> None:
    table = Table("prompt", "volume (ml)", "presence", "seconds")
    for row in report["results"]:
        result = f"{row['volume_ml']:.4g}" if row["voxels"] else "empty" if row["found"] else "not found"
        table.add_row(escape(row["prompt"]), result, f"{row['presence']:.2f}", f"{row['seconds']:.1f}")
    Console().print(table)
    print(f"{report['seconds_encoding']:.1f} s to encode the scan on {report['device']} in {report['precision']}")


def _frames(path: Path, outputs: Outputs, options: argparse.Namespace) -> list[tuple[Volume, Outputs]]:
    """Return the volume that is meant with its outputs; for --frame all each frame with numbered outputs."""
    if options.frame != "all":
        return [(read_volume(path, options.series, options.frame, options.resample), outputs)]
    return [
        (volume, Outputs(**{key: _numbered(name, number) for key, name in vars(outputs).items()}))
        for number, volume in enumerate(read_frames(path, options.series, options.resample))
    ]


def _numbered(path: Path | None, number: int) -> Path | None:
    if path is None:
        return None
    stem = path.name.split(".")[0]
    return path.with_name(f"{stem}_frame{number:04d}{path.name[len(stem) :]}")


def _named_studies(inputs: list[Path]) -> dict[str, Path]:
    """Return the studies by the names of their outputs."""
    studies: dict[str, Path] = {}
    for root in inputs:
        for path in find_studies(root) if root.is_dir() else [root]:
            suffix = image_suffix(path) or (path.suffix if path.is_file() else "")
            relative = path.relative_to(root) if path != root else Path(path.name or path.resolve().name)
            name = "_".join(relative.parts).removesuffix(suffix)
            if name in studies:
                raise UserError(f"{studies[name]} and {path} would both be written as '{name}'; rename one of them")
            studies[name] = path
    return studies


def _outputs_in(options: argparse.Namespace, name: str) -> Outputs:
    folder = options.output
    return Outputs(
        folder / f"{name}{options.format}",
        report=folder / f"{name}.json",
        preview=folder / f"{name}.png" if options.preview else None,
        masks=folder / f"{name}.nii.gz" if options.masks else None,
        probability=folder / f"{name}_probability.nii.gz" if options.probability else None,
    )


def _named(chosen: Path | None, beside: Path) -> Path | None:
    return beside if chosen is BESIDE else chosen


def _segmenter(options: argparse.Namespace) -> Segmenter:
    return Segmenter(options.adapter, options.base, options.device, options.precision, options.batch_size)


def _request(options: argparse.Namespace) -> Request:
    prompts = [part for text in options.prompt for part in split_prompts(text) or [""]]
    return Request(
        prompts=tuple(prompts),
        plane=options.plane,
        window=options.window,
        threshold=options.threshold,
        keep_largest=options.keep_largest,
        fill_holes=options.fill_holes,
        minimum_ml=options.min_volume_ml,
        exclusive=options.exclusive,
    )


def _place(text: str) -> Path | str:
    return text if dicomweb.is_address(text) else _path(text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty file name")
    return Path(text)


def _word(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty word; leave the option out for its default")
    return text


def _frame(text: str) -> int | str:
    return text if text == "all" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.segment", description=__doc__)
    add = parser.add_argument
    what = "a scan, a folder or ZIP file with a DICOM series, a folder of studies, or a series on a DICOMweb server"
    add("input", type=_place, nargs="+", help=what)
    add("-p", "--prompt", action="append", default=[], help="what to segment; repeat it, or separate by ;")
    add(
        "-o",
        "--output",
        type=_path,
        required=True,
        help=f"file ({', '.join(SUFFIXES)}), or a folder for many; .dcm is a DICOM segmentation, for DICOM scans",
    )
    add("-a", "--adapter", type=_word, help="name or folder of an adapter; the base alone without it")
    add("--base", type=_word, help="name or folder of a base (default: the adapter's own, or mini)")
    add("--plane", type=_word, help=f"{', '.join(PLANES)} (default: the adapter's)")
    add("--window", type=_word, help=f"{', '.join(WINDOWS)} (default: the adapter's; auto: soft-tissue for CT)")
    add("--threshold", type=float, help="of the probability, 0 to 1 (default: the adapter's)")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", help=f"auto, {', '.join(PRECISIONS)}")
    add("--batch-size", default="auto", help="slices at a time (default: as many as fit)")
    add("--series", type=_word, help="which DICOM series: number, UID or a part of its description")
    add("--frame", type=_frame, help="which frame of a 4-D file or volume of a DICOM series, from 0, or all")
    add("--resample", action="store_true", help="put uneven or tilted DICOM slices onto a regular grid")
    add("--keep-largest", action="store_true", help="keep the largest part of each segment")
    add("--fill-holes", action="store_true", help="fill what a segment encloses")
    add("--min-volume-ml", type=float, default=0.0, help="drop parts that are smaller")
    add("--exclusive", action="store_true", help="give each voxel to its most probable prompt alone")
    add("--masks", type=_path, nargs="?", const=BESIDE, help="also write one mask file for each prompt (NIfTI)")
    add(
        "--probability",
        type=_path,
        nargs="?",
        const=BESIDE,
        help="also write one probability file for each prompt",
    )
    add("--preview", type=_path, nargs="?", const=BESIDE, help="also write a picture (PNG)")
    add(
        "--report",
        type=_path,
        nargs="?",
        const=BESIDE,
        help="also write a report (JSON); folders get them always",
    )
    add("--format", choices=SUFFIXES, default=".seg.nrrd", help="of the files in an output folder")
    add("--resume", action="store_true", help="skip studies of the output folder that are done")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    run(main)
