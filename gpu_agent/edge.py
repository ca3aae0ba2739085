"""Shell: uvicorn's HTTP protocol with bounds: connections, bytes of a head, seconds of a request.

uvicorn reads a head of any length for as long as its client likes. Here a request is whole within PATIENCE
of its first byte (of the connection, for the first one), or its connection is closed. One timer a connection
looks after that, none is made per request.
"""

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_CONNECTIONS = 128
MAX_HEAD = 16 * 1024  # bytes
PATIENCE = 5.0  # seconds
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Edge(HttpToolsProtocol):
    _due: float | None = None  # when the request that is being received must be whole
    _head = 0  # bytes of it so far, while its head is not complete
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()
            return
        self._due = self.loop.time() + PATIENCE
        self._look = self.loop.call_at(self._due, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._due is None:
            self._due, self._head = self.loop.time() + PATIENCE, 0
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD:
            self._refuse(TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._due = None
        super().on_message_complete()

    def _check(self) -> None:
        now = self.loop.time()
        if self._due is not None and now >= self._due:
            self._refuse(TOO_LATE)
        else:
            self._look = self.loop.call_at(self._due or now + PATIENCE, self._check)

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()
