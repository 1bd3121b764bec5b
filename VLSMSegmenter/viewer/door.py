"""One address for everybody: whoever comes with the token gets a session, under a path that nobody can guess.

That address is all that a browser needs, so one forwarded port (ssh -L) reaches a machine elsewhere.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable, Coroutine
from contextlib import suppress

import aiohttp
from aiohttp import web

from engine.errors import UserError
from viewer.processes import SessionProcess, Start

GOODBYE_SECONDS = 10.0  # between a page that was closed and the end of its session: it may only be loaded anew
ENDED = "This session has ended. Open the address that was printed at the start."
PLAIN = {"Accept-Encoding": "identity"}
PASSED_ON = ("Content-Type", "Last-Modified", "ETag")
HEADERS = {
    "Referrer-Policy": "no-referrer",  # the path is a secret
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
    # Nothing is loaded from elsewhere; Vue makes functions of the page's templates.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
}


class Door:
    """Starts sessions and hands on what their pages say.

    Args:
        start: what each session begins with.
        token: what the address must carry.
        most: how many sessions there may be at once.
    """

    def __init__(self, start: Start, token: str, most: int):
        self._start, self._token, self._most = start, token, most
        self._sessions: dict[str, SessionProcess] = {}
        self._pages: dict[str, int] = {}  # how many are open, by session
        self._over: set[str] = set()
        self._tasks: set[asyncio.Task] = set()
        self._client: aiohttp.ClientSession | None = None
        self._app = web.Application(middlewares=[_safely])
        self._app.add_routes(
            [
                web.get("/", self._enter),
                web.post("/s/{session}/paraview/", self._introduce),  # as trame's client asks for its session
                web.post("/s/{session}/goodbye", self._goodbye),
                web.get("/s/{session}/ws", self._talk),
                web.get("/s/{session}/{path:.*}", self._fetch),
            ]
        )

    async def serve(self, port: int, beside: Coroutine, on_ready: Callable[[str], None]) -> None:
        """Serve until cancelled.

        Args:
            port: of loopback; 0 for any.
            beside: runs as long.
            on_ready: called with the address, once it is there.

        Raises:
            UserError: the port is taken.
        """
        runner = web.AppRunner(self._app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        watching = asyncio.ensure_future(beside)
        try:
            try:
                await site.start()
            except (OSError, OverflowError) as error:
                raise UserError(f"cannot listen at port {port} ({error}); choose another --port") from error
            async with aiohttp.ClientSession(auto_decompress=False) as self._client:
                on_ready(f"http://127.0.0.1:{runner.addresses[0][1]}/?token={self._token}")
                await asyncio.Event().wait()
        finally:
            watching.cancel()
            await asyncio.gather(*(session.stop() for session in self._sessions.values()), return_exceptions=True)
            await runner.cleanup()

    async def _enter(self, request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.query.get("token", "").encode(), self._token.encode()):
            raise web.HTTPForbidden(text="The token is missing or wrong: open the address that was printed, whole.")
        raise web.HTTPFound(f"/s/{await self._new_session()}/")

    async def _new_session(self) -> str:
        if len(self._sessions) >= self._most:
            raise web.HTTPServiceUnavailable(
                text=f"{self._most} pages are open, as many as may be: close one, or start with more --sessions."
            )
        name, session = secrets.token_hex(24), SessionProcess()  # trame makes addresses lower case
        self._sessions[name], self._pages[name] = session, 0
        try:
            await session.start(self._start)
        except UserError as error:
            self._forget(name)
            raise web.HTTPInternalServerError(text=str(error)) from error
        self._later(self._see_out(name, session))
        return name

    async def _see_out(self, name: str, session: SessionProcess) -> None:
        await session.wait()
        self._forget(name)
        self._over.add(name)

    def _forget(self, name: str) -> None:
        self._sessions.pop(name, None)
        self._pages.pop(name, None)

    def _session(self, request: web.Request) -> SessionProcess:
        name = request.match_info["session"]
        if name not in self._sessions:
            raise web.HTTPNotFound(text=ENDED)
        return self._sessions[name]

    async def _introduce(self, request: web.Request) -> web.Response:
        scheme = "wss" if request.secure else "ws"
        url = f"{scheme}://{request.host}/s/{request.match_info['session']}/ws"
        return web.json_response({"sessionURL": url, "secret": self._session(request).secret})

    async def _goodbye(self, request: web.Request) -> web.Response:
        name, session = request.match_info["session"], self._session(request)

        async def end_unless_back() -> None:
            await asyncio.sleep(GOODBYE_SECONDS)
            if self._pages.get(name) == 0:
                await session.stop()

        self._later(end_unless_back())
        return web.Response()

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        name, session = request.match_info["session"], self._session(request)
        page = web.WebSocketResponse(max_msg_size=0, compress=False)
        await page.prepare(request)
        self._pages[name] += 1
        try:
            url = f"http://127.0.0.1:{session.port}/ws"
            async with self._client.ws_connect(url, max_msg_size=0, compress=0) as there:
                await _connect(page, there)
        except aiohttp.ClientError:  # the session has just ended
            pass
        finally:
            if name in self._pages:
                self._pages[name] -= 1
            await page.close()
        return page

    async def _fetch(self, request: web.Request) -> web.Response:
        if request.match_info["session"] in self._over and not request.match_info["path"]:
            raise web.HTTPFound(f"/s/{await self._new_session()}/")  # a page of old that was loaded again
        path = request.match_info["path"] or "index.html"
        url = f"http://127.0.0.1:{self._session(request).port}/{path}"
        try:
            async with self._client.get(url, headers=PLAIN, allow_redirects=False) as answer:
                headers = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)
        except aiohttp.ClientError as error:
            raise web.HTTPNotFound(text=ENDED) from error

    def _later(self, work: Coroutine) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # a task that nobody holds may be lost
        task.add_done_callback(self._tasks.discard)


async def _connect(page: web.WebSocketResponse, session: aiohttp.ClientWebSocketResponse) -> None:
    """Let a page and its session talk until one of them stops."""
    ways = [asyncio.ensure_future(way) for way in (_hand_on(page, session), _hand_on(session, page))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()


async def _hand_on(source, target) -> None:
    """Give what one end of a web socket says to the other, until one closes."""
    with suppress(ConnectionError):
        async for message in source:
            if message.type is aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                await target.send_str(message.data)


@web.middleware
async def _safely(request: web.Request, handler: Callable) -> web.StreamResponse:
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    if not answer.prepared:
        answer.headers.update(HEADERS)
    return answer
