"""Segment scans by text prompts: one scan into one file, or many into a folder through one warm model."""

import argparse
from pathlib import Path

from engine.choices import PRECISIONS
from engine.cli import called, run, whole_number
from engine.errors import UserError
from engine.files import means_folder
from engine.imaging.dicom import web
from engine.imaging.formats import DICOM_SUFFIX, STRUCTURE_SET_SUFFIX, SUFFIXES
from engine.imaging.volumes.intensity import CHOICES as WINDOWS
from engine.imaging.volumes.planes import CHOICES as PLANES
from engine.prompts import split_prompts
from engine.segmentation.request import BESIDE, Request, check_request


def main() -> None:
    options = _parser().parse_args()
    options.output, options.many = options.output
    request = _request(options)
    check_request(request)
    _check_places(options)
    from engine.commands import segment  # takes seconds: PyTorch and more

    segment.run(options, request)


def _check_places(options: argparse.Namespace) -> None:
    for path in options.input:
        if isinstance(path, Path) and not path.exists():
            raise UserError(f"{path} does not exist")
    written = options.format if options.many else options.output.name.lower()
    if options.store and not written.endswith(DICOM_SUFFIX):
        raise UserError(
            "--store sends DICOM segmentations or structure sets; write .dcm or .rt.dcm (--format into a folder)"
        )
    if options.measurements and (not written.endswith(DICOM_SUFFIX) or written.endswith(STRUCTURE_SET_SUFFIX)):
        raise UserError("--measurements refer to a DICOM segmentation; write .dcm, or --format .dcm into a folder")
    if options.cluster and not options.many:
        raise UserError(f"a cluster segments into an output folder; end {options.output} with / if it is to be one")
    if options.each_series and (options.series or not options.many):
        raise UserError("--each-series writes into an output folder, and goes without --series")
    if options.workers and not options.cluster:
        raise UserError("--workers are those of a cluster; add --cluster local for workers on this machine")
    if options.many:
        for name in ("report", "preview", "masks", "probability"):
            if getattr(options, name) not in (None, BESIDE):
                raise UserError(f"with an output folder, --{name} takes no file name; each study gets its own")
    elif len(options.input) > 1:
        inputs = f"{len(options.input)} inputs"
        raise UserError(f"{inputs} need an output folder; end {options.output} with / if it is to be one")
    elif not options.output.name.lower().endswith(SUFFIXES):
        suffixes = ", ".join(SUFFIXES)
        raise UserError(
            f"{options.output} is no folder, nor has it a suffix ({suffixes}); end it with / if it is to be one"
        )


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
    return text if web.is_address(text) else _path(text)


def _service(text: str) -> str:
    if not web.is_address(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no address of a server; it starts with https:// or http://")
    return text


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty file name")
    return Path(text)


def _file_or_folder(text: str) -> tuple[Path, bool]:
    return _path(text), means_folder(text)


def _word(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("an empty word; leave the option out for its default")
    return text


def _frame(text: str) -> int | str:
    return text if text == "all" else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("segment"), description=__doc__)
    add = parser.add_argument
    what = "scans: files, folders or ZIP files of a DICOM series, folders of studies, addresses of DICOMweb"
    add("input", type=_place, nargs="+", help=what)
    add("-p", "--prompt", action="append", default=[], help="what to segment; repeat it, or separate by ;")
    add(
        "-o",
        "--output",
        type=_file_or_folder,
        required=True,
        help=f"a file ({', '.join(SUFFIXES)}; .dcm is a DICOM segmentation and .rt.dcm an RT structure set "
        "with holes as keyholes, both for DICOM scans), or a folder: with -o results/ scan.nii.gz becomes "
        "results/scan.seg.nrrd. A name that ends with / or has no suffix means a "
        "folder; folders that are not there are made",
    )
    add("-a", "--adapter", type=_word, help="name or folder of an adapter; the base alone without it")
    add("--base", type=_word, help="name or folder of a base (default: the adapter's own, or mini)")
    add("--plane", type=_word, help=f"{', '.join(PLANES)} (default: the adapter's)")
    add("--window", type=_word, help=f"{', '.join(WINDOWS)} (default: the adapter's; auto: soft-tissue for CT)")
    add("--threshold", type=float, help="of the probability, 0 to 1 (default: the adapter's)")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", help=f"auto, {', '.join(PRECISIONS)}")
    add("--batch-size", default="auto", help="slices at a time (default: as many as fit)")
    add("--series", type=_word, help="which DICOM series: number, UID (or its end) or a part of its description")
    add("--each-series", action="store_true", help="take each DICOM series of a folder as a study of its own")
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
    add("--measurements", action="store_true", help="also write the volumes as a DICOM structured report, .sr.dcm")
    add(
        "--report",
        type=_path,
        nargs="?",
        const=BESIDE,
        help="also write a report (JSON); folders get them always",
    )
    add(
        "--format",
        choices=SUFFIXES,
        default=".seg.nrrd",
        help="of the files in an output folder (default: .seg.nrrd)",
    )
    add("--store", type=_service, metavar="SERVICE", help="also send the results to this DICOMweb server")
    add(
        "--cluster",
        type=_word,
        metavar="ADDRESS",
        help="share the studies among workers of a Ray cluster: HOST:PORT or auto, or local for this machine alone",
    )
    add(
        "--workers",
        type=whole_number,
        help="of the cluster, also several a GPU (default: one a GPU, or one a machine without any)",
    )
    add("--resume", action="store_true", help="skip studies of the output folder that are done")
    add("--overwrite", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    run(main)
