"""Start an engine for all and the door, and say where the page is."""

import argparse
import asyncio
import os
import secrets
import webbrowser
from pathlib import Path

from engine.errors import UserError
from engine.server.token import TOKEN_VARIABLE
from viewer.door import Door
from viewer.processes import OwnEngine, ServedEngine, Start


def run(options: argparse.Namespace) -> None:
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
