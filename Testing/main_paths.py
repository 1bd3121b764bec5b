"""Do what users do, in one process that may reach no network.

Segments a scan, trains a small adapter, evaluates it, lists adapters, and serves a job to a client on loopback:
`PYTHONPATH=. python Testing/main_paths.py SCAN DATA BASE OUTPUT`.
"""

import sys

LOOPBACK = ("127.0.0.1", "::1", "localhost")
ASKING = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
forbidden: list[str] = []
loopback_allowed = False


def forbid_network(event: str, arguments: tuple) -> None:
    """An audit hook of the interpreter, which no library gets around in Python."""
    if event not in ASKING:
        return
    address = arguments[1] if event in ASKING[:3] else arguments
    if isinstance(address, str | bytes):  # a socket of this machine's file system
        return
    inwards = loopback_allowed or event == "socket.bind"  # as urllib3 does to see whether there is IPv6
    if not (inwards and address[0] in LOOPBACK):
        forbidden.append(f"{event} {address}")
        raise OSError(f"the network is forbidden here: {event} {address}")


sys.addaudithook(forbid_network)  # before anything else is loaded

import json  # noqa: E402
import socket  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

from engine import adapters, evaluate, segment, train  # noqa: E402
from engine.cli import run  # noqa: E402
from engine.client import Client  # noqa: E402
from engine.server.app import Settings, create_app  # noqa: E402
from engine.server.connection import HttpServer  # noqa: E402

TOKEN = "a token for the tests"


def command(main, *arguments) -> int:
    sys.argv = ["command", *map(str, arguments)]
    try:
        run(main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def serve_a_job(voxels) -> int:
    """Return how many results a client got."""
    global loopback_allowed
    loopback_allowed = True
    server = HttpServer(create_app(Settings(TOKEN, "cpu")), grace_seconds=1)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
    return len(client.segment(client.put_volume(voxels, (1, 1, 1)), ["brain"]))


def main() -> None:
    scan, data, base, output = map(Path, sys.argv[1:])
    device = "--device", "cpu"
    adapter, found = output / "adapter", output / "found.seg.nrrd"
    codes = {
        "train": command(
            train.main, "--data", data, "-o", adapter, "--base", base, *device, "--epochs", 1, "--batch-size", 1
        ),
        "segment": command(
            segment.main,
            *(scan, "-p", "disc", "-a", adapter, "--base", base, "-o", found, *device),
            *("--report", "--preview", "--masks", "--probability"),
        ),
        "evaluate": command(
            evaluate.main, "--data", data, "-a", adapter, "--base", base, *device, "-o", output / "evaluation"
        ),
        "adapters": command(adapters.main, "list"),
    }
    from engine import read_volume

    codes["served"] = serve_a_job(read_volume(scan).voxels)
    print(json.dumps({"codes": codes, "forbidden": forbidden}))


if __name__ == "__main__":
    main()
