"""Segment scans by text prompts in a browser. Prints the address of the page, with a token; Ctrl-C ends it all."""

import argparse
import asyncio
import os
import secrets
import webbrowser
from pathlib import Path

from engine.cli import run
from engine.errors import UserError
from engine.serve import TOKEN_VARIABLE
from viewer.door import Door
from viewer.processes import OwnEngine, ServedEngine, Start


def main() -> None:
    options = _parser().parse_args()
    for path in filter(None, (options.file, options.segments)):
        if not path.exists():
            raise UserError(f"{path} is not there")
    engine = ServedEngine(options.server, _servers_token()) if options.server else OwnEngine(_arguments(options))
    print("starting the engine …", flush=True)
    with engine:
        start = Start(
            engine.url,
            engine.token,
            _absolute(options.file),
            _absolute(options.segments),
            options.series,
            options.frame,
            options.adapter,
        )
        door = Door(start, secrets.token_urlsafe(32), options.sessions)
        asyncio.run(door.serve(options.port, engine.watch(), _announcing(options.browser)))


def _absolute(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def _arguments(options: argparse.Namespace) -> list[str]:
    return ["--device", options.device, *(["--allow-download"] if options.allow_download else [])]


def _servers_token() -> str:
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UserError(f"--server wants the server's token in {TOKEN_VARIABLE}")
    return token


def _announcing(browser: bool):
    def announce(url: str) -> None:
        print(f"the page is at {url}\nCtrl-C ends it", flush=True)
        if browser:
            webbrowser.open(url)

    return announce


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.view", description=__doc__)
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
    add("--server", metavar="URL", help=f"an engine that runs elsewhere; its token is taken from {TOKEN_VARIABLE}")
    add("--sessions", type=int, default=10, help="how many pages may be open at once (default: 10)")
    add("--no-browser", dest="browser", action="store_false", help="only print the address")
    return parser


if __name__ == "__main__":
    run(main)
