"""A client that does not look for an answer while it sends, as many do not."""

import http.client
import json
import select
import socket
from urllib.parse import urlsplit

from conftest import PATIENCE_SECONDS


def sent_whole(url, token, method, path, **headers):
    """Send a body of 4 MiB, most of it after the answer has come; return the answer's status and reason."""
    address, size = urlsplit(url), 4 << 20
    headers = {"Authorization": f"Bearer {token}", "Content-Length": size, "Connection": "close", **headers}
    head = "\r\n".join(
        [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    )
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + bytes(1000))
        assert select.select([connection], [], [], PATIENCE_SECONDS)[0]
        connection.sendall(bytes(size - 1000))  # fails where the server has closed the connection
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())["detail"]
