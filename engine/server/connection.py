"""HTTP connections that do not wait for ever for their first request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

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
