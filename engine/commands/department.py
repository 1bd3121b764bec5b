"""Start replicas of the server behind one address, and wait until they are told to stop."""

import argparse
import json
import signal
import sys
from dataclasses import fields

from engine.errors import UserError
from engine.segmentation.cluster import connected
from engine.server.replicas import Replicas, deployment
from engine.server.token import chosen_token
from engine.version import __version__


def run(options: argparse.Namespace) -> None:
    token = chosen_token()
    given = {field.name: getattr(options, field.name) for field in fields(Replicas) if field.name in options}
    with connected(options.cluster):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # in place of Ray's own
        try:
            from ray import serve
        except ModuleNotFoundError as error:
            raise UserError(f"this needs {error.name}; run pip install --editable '.[department]'") from error
        serve.start(http_options={"host": options.host, "port": options.port})
        try:
            serve.run(deployment(Replicas(**given), token), name="segmentation", route_prefix="/")
            url = f"http://{options.host}:{options.port}"
            print(json.dumps({"url": url, "token": token, "version": __version__}), flush=True)
            print(f"{options.replicas} servers at {url}; Ctrl-C stops them", file=sys.stderr)
            signal.pause()
        finally:
            serve.shutdown()
