"""Segment scans by text prompts in a browser. Prints the address of the page, with a token; Ctrl-C ends it all.

The page is the package `viewer` beside the Slicer module, with which it shares all but its looks."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from engine.cli import called, run
from engine.errors import UserError
from engine.models.places import shipped

MODULE = shipped("VLSMSegmenter")  # where Slicer would find the module's library


def main() -> None:
    options = _parser().parse_args()
    for path in filter(None, (options.file, options.segments)):
        if not path.exists():
            raise UserError(f"{path} is not there")
    if find_spec("trame_slicer") is None:
        raise UserError("the viewer needs trame-slicer; run: make view, or pip install --editable '.[viewer]'")
    if not (MODULE / "viewer").is_dir():
        raise UserError(f"the viewer is not in {MODULE}; Slicer's extension leaves it out, the repository has it")
    sys.path.insert(0, str(MODULE))
    from viewer import command

    command.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("view"), description=__doc__)
    add = parser.add_argument
    add(
        "file",
        type=Path,
        nargs="?",
        help="a scan that each page opens: an image, DICOM, a folder or a ZIP file of it",
    )
    add("--segments", type=Path, help="a .seg.nrrd file with segments of that scan")
    add("--series", help="which series of a folder: its number, UID or a part of its description")
    add("--frame", type=int, help="which volume of a series or a file with several, from 0")
    add("--adapter", help="which is chosen at first (default: the first)")
    add("--port", type=int, default=0, help="default: any that is free; only this machine can reach it")
    add("--device", default="auto", help="of the engine: auto, cuda, mps or cpu")
    add("--allow-download", action="store_true", help="fetch the public base when an adapter needs it")
    add("--server", metavar="URL", help="an engine that runs elsewhere; its token is taken from VLSM_TOKEN")
    add("--sessions", type=int, default=10, help="how many pages may be open at once (default: 10)")
    add("--no-browser", dest="browser", action="store_false", help="only print the address")
    return parser


if __name__ == "__main__":
    run(main)
