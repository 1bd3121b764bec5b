"""Who may ask, how much they may send, and how long that may take: before anything else looks at a request."""

import asyncio
import base64
import hmac
import json
import re
from binascii import Error as BinasciiError
from collections.abc import Callable
from contextlib import suppress

from engine.client.protocol import ENGINE_HEADER, PROTOCOL, PROTOCOL_HEADER
from engine.server.jobs import log_unexpected, unexpected
from engine.server.refusal import Refusal
from engine.version import __version__

SMALL_BODY = 64 << 10  # of all requests but those that bring voxels
VOXELS = re.compile(r"/volumes/[0-9a-f]{32}")
PAGES = ("/docs", "/openapi.json")  # a browser shows these, and asks for the token as a password
STEP_BYTES = 1 << 20
UNWANTED_BYTES, UNWANTED_SECONDS = 8 << 20, 5.0  # that are taken of a body after its answer


class Guard:
    """An ASGI application around another one.

    Args:
        token: what every request must carry.
        body_limit: bytes of the voxels of one volume.
        step_seconds: how long a mebibyte of a body, or its rest, may take.

    Attributes:
        stop: called before the server waits for its last answers to end.
    """

    stop: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, app, token: str, body_limit: int, step_seconds: float):
        self._app, self._token, self._body_limit, self._step_seconds = app, token, body_limit, step_seconds

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        voxels = scope["method"] == "PUT" and VOXELS.fullmatch(scope["path"])
        limit = self._body_limit if voxels else SMALL_BODY
        exchange = _Exchange(receive, send, _brings_body(scope), limit, self._step_seconds)
        try:
            self._admit(scope, limit)
            await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except Exception as error:
            log_unexpected(error)
            await exchange.refuse(Refusal(500, unexpected(error)))

    def _admit(self, scope, limit: int) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        page = scope["method"] == "GET" and scope["path"] in PAGES
        if not hmac.compare_digest(_given_token(headers, page).encode(), self._token.encode()):
            raise Refusal(
                401, "the token is missing or wrong; give the one that the server printed when it started"
            )
        theirs = headers.get(PROTOCOL_HEADER.lower(), str(PROTOCOL))
        if theirs != str(PROTOCOL):
            raise _mismatch(theirs[:9], headers.get(ENGINE_HEADER.lower(), "unknown")[:20])
        if int(headers.get("content-length", 0)) > limit:
            raise _too_large(limit)


class _Exchange:
    """One request and its answer: counts and times the body, and answers with a refusal where that fails.

    An answer that comes before the body's end is the last of its connection, which stays open for a while: to close
    it while more is sent resets it, and the client may lose the answer. What is sent then is dropped.
    """

    def __init__(self, receive, send, brings_body: bool, limit: int, step_seconds: float):
        self._receive, self._send, self._limit, self._step_seconds = receive, send, limit, step_seconds
        self._received, self._next_step, self._deadline = 0, 0, 0.0
        self._complete, self._started, self._over = not brings_body, False, False
        self._refusal: Refusal | None = None

    async def receive(self):
        if self._complete:
            return await self._receive()  # waits for the client to hang up
        try:
            return await self._receive_body()
        except Refusal as refusal:
            self._refusal = refusal  # whatever the application makes of it
            raise

    async def _receive_body(self):
        now = asyncio.get_running_loop().time()
        if self._received >= self._next_step:
            self._next_step, self._deadline = self._received + STEP_BYTES, now + self._step_seconds
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - now))
        except (TimeoutError, asyncio.TimeoutError):
            raise Refusal(408, "the request's body comes too slowly; try again over a better network") from None
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise _too_large(self._limit)
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message) -> None:
        if self._over:
            return
        if self._refusal and not self._started:
            await self.refuse(self._refusal)
            return
        self._started = True
        await self._answer(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer, if nothing was answered yet."""
        if self._started:
            return
        self._started = self._over = True
        body = json.dumps({"detail": str(refusal)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.status == 401:
            headers.append((b"www-authenticate", b'Basic realm="VLSMSegmenter: the token is the password"'))
        await self._answer({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._answer({"type": "http.response.body", "body": body})

    async def _answer(self, message) -> None:
        early, starts = not self._complete, message["type"] == "http.response.start"
        if early and starts:
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        last = early and not starts and not message.get("more_body", False)
        await asyncio.wait_for(self._send({**message, "more_body": True} if last else message), self._step_seconds)
        if last:
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._drop_rest(), min(UNWANTED_SECONDS, self._step_seconds))
            await self._send({"type": "http.response.body"})

    async def _drop_rest(self) -> None:
        """Take the rest of the body, or as much as may come, until the client hangs up."""
        rest, more = UNWANTED_BYTES, True
        while more and rest > 0:
            message = await self._receive()
            rest -= len(message.get("body", b""))
            more = message.get("more_body", False)


def _brings_body(scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _given_token(headers: dict[str, str], page: bool) -> str:
    """Return the token: "Bearer TOKEN", or for pages also the password that a browser asks for."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic" and page:
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except (BinasciiError, UnicodeDecodeError):
            return ""
    return ""


def _mismatch(protocol: str, engine: str) -> Refusal:
    return Refusal(
        409,
        f"the client speaks version {protocol} (engine {engine}) and the server version {PROTOCOL} "
        f"(engine {__version__}); install the same version of VLSMSegmenter on both sides",
    )


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request's body is larger than the {limit:,} bytes that the server takes")
