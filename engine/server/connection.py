"""uvicorn's connections and server, less patient."""

import asyncio
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.server.guard import Guard

SILENT_SECONDS = 20.0


class Connection(H11Protocol):
    """A connection that is closed where no request came whole in time; uvicorn itself would keep it."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

    def connection_lost(self, error: Exception | None) -> None:
        self._patience.cancel()  # it would keep the connection in memory
        super().connection_lost(error)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


class HttpServer(uvicorn.Server):
    """A server that ends its jobs before it waits for their answers to end.

    Args:
        app: what `create_app` returned.
        grace_seconds: how long it waits.
    """

    def __init__(self, app: Guard, grace_seconds: int):
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                loop="asyncio",  # whatever faster one is installed for others
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=grace_seconds,
            )
        )
        self._stop = app.stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop()
        await super().shutdown(sockets)
