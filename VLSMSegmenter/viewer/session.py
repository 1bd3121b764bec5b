"""One page's session: a scene, the Slicer module's logic with the engine that all share, and the page itself.

Reads a line of JSON from standard input, says its port in one on standard output, and ends when standard input
does: then the process that started it is gone.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from trame.app import get_server
from VLSMSegmenterLib.shared.engines import RemoteEngine

from viewer.actions import Actions
from viewer.files import Inbox
from viewer.page import STATE, Page, over_3d, over_slice
from viewer.scene import Scene

DESERTED_SECONDS = 600  # a page that lost its connection, and did not say goodbye, is waited for


def main() -> None:
    start = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_standard_input, args=(start["folder"],), daemon=True).start()
    tempfile.tempdir = start["folder"]  # removed with the session, however that ends
    server = get_server(client_type="vue3")
    server.state.update(STATE)
    scene = Scene(server, over_slice(server), over_3d(server))
    engine = RemoteEngine(start["engine_url"], start["engine_token"])
    actions = Actions(server, scene, engine, Inbox(Path(start["folder"])))
    Page(server, actions)

    def begin(**state: object) -> None:
        print(json.dumps({"port": server.port}), flush=True)
        actions.begin(start["file"], start["segments"], start["series"], start["frame"], start["adapter"])

    server.controller.on_server_ready.add(begin)
    os.environ["WSLINK_READY_MSG"] = ""
    server.start(port=0, host="127.0.0.1", open_browser=False, show_connection_info=False, timeout=DESERTED_SECONDS)


def _end_with_standard_input(folder: str) -> None:
    while sys.stdin.read(1 << 10):
        pass
    shutil.rmtree(folder, ignore_errors=True)  # nobody else is left who could
    os._exit(0)


if __name__ == "__main__":
    main()
