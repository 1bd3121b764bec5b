"""Serve segmentation over HTTP: on this machine only, and to those who have the token.

Prints one line of JSON on standard output once it is ready: url, token, version and pid.
"""

import argparse
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from engine.cli import called, log_what_names_nobody, run, whole_number
from engine.errors import UserError
from engine.server.token import chosen_token
from engine.version import __version__

LOOPBACK = ("127.0.0.1", "::1", "localhost")
GRACE_SECONDS = 2
MIB = 1 << 20


def main() -> None:
    options, token = _parser().parse_args(), chosen_token()
    if not options.allow_download:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is loaded, so before the server is
    try:
        from engine.server.app import create_app
        from engine.server.connection import HttpServer
    except ModuleNotFoundError as error:
        raise UserError(f"the server needs {error.name}; run pip install --editable '.[serve]'") from error

    log_what_names_nobody()
    settings = _settings(options, token)
    app = create_app(settings)
    listener = _listen(options.host, options.port)
    server = HttpServer(app, GRACE_SECONDS)
    if options.parent_pid:
        threading.Thread(target=_stop_with, args=(options.parent_pid, server), daemon=True).start()
    _announce(listener, settings, options.host)
    server.run([listener])
    sys.stdout.flush()
    os._exit(0)  # a job may still be in its last slices


def _settings(options: argparse.Namespace, token: str):
    from engine.server.app import Settings

    for folder in options.allow_path:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder; --allow-path takes folders that clients may have files read from"
            )
    return Settings(
        token=token,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        allowed=tuple(folder.resolve() for folder in options.allow_path),
        memory_bytes=options.memory_mb * MIB,
        body_bytes=options.body_mb * MIB,
        volumes=options.volumes,
        waiting=options.waiting,
        models=options.models,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error}); choose another --host or --port"
        ) from error


def _announce(listener: socket.socket, settings, host: str) -> None:
    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    print(
        json.dumps({"url": url, "token": settings.token, "version": __version__, "pid": os.getpid()}),
        flush=True,
    )
    print(f"serving at {url}; what can be asked is described at {url}/docs; Ctrl-C stops", file=sys.stderr)
    if host not in LOOPBACK:
        print(
            f"others can reach {host}, and nothing is encrypted; better serve 127.0.0.1 through ssh -L",
            file=sys.stderr,
        )


def _stop_with(pid: int, server) -> None:
    """End the server once the process that started it is gone."""
    import psutil

    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.NoSuchProcess:
        pass
    server.should_exit = True
    time.sleep(2 * GRACE_SECONDS)
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("serve"), description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=int, default=0, help="default: any that is free")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    add("--batch-size", default="auto", help="slices at a time (default: as many as fit)")
    add(
        "--allow-path",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="let clients name files in it",
    )
    add("--allow-download", action="store_true", help="fetch the public base when an adapter needs it")
    add("--memory-mb", type=whole_number, default=4096, help="for volumes, encodings and results (default: 4096)")
    add("--body-mb", type=whole_number, default=1024, help="largest volume (default: 1024)")
    add("--volumes", type=whole_number, default=16, help="how many are held (default: 16)")
    add("--waiting", type=whole_number, default=32, help="how many jobs may wait (default: 32)")
    add("--models", type=whole_number, default=3, help="how many stay warm (default: 3)")
    add("--parent-pid", type=int, help="end when this process ends")
    return parser


if __name__ == "__main__":
    run(main)
