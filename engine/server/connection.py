"""HTTP connections that do not wait for ever for their first request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENT_SECONDS = 20.0


class Connection(H11Protocol):
    """A connection that is closed where no request came whole in time; uvicorn itself would keep it."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(SILENT_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
