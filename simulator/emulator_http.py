"""Shell: a lean HTTP/1.1 server for the emulated engines: httptools in, bytes out, one exchange at a time.

Cheap because it must be: six engines, their gateway and a load generator share two cores. A streamed token is
one `write` of bytes that its sender has framed already.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast
from urllib.parse import unquote

import httptools

MAX_BODY = 64 * 2**20
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
JSON = b"application/json"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # without the query
    query: str
    headers: dict[bytes, bytes]  # names in lower case
    body: bytes


class App(Protocol):
    """Answers requests. It may answer later, through the exchange."""

    def handle(self, request: Request, exchange: "Exchange") -> None: ...


class Exchange:
    """One request being answered. After `closed` nothing is written any more."""

    __slots__ = ("_connection", "_transport", "closed", "on_disconnect")

    def __init__(self, connection: "Connection", transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self.closed = False
        self.on_disconnect: Callable[[], None] | None = None

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """A whole response."""
        lines = [STATUS_LINES[status], b"server: uvicorn\r\ncontent-length: %d\r\n" % len(body)]
        if body:
            lines.append(b"content-type: %s\r\n" % content_type)
        lines += [b"%s: %s\r\n" % header for header in extra]
        self.finish(b"".join((*lines, b"\r\n", body)))

    def start_stream(self, content_type: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Status 200 and headers of a chunked response."""
        headers = b"".join(b"%s: %s\r\n" % header for header in extra)
        self.write(
            STATUS_LINES[200]
            + b"server: uvicorn\r\ncontent-type: %s\r\n" % content_type
            + headers
            + b"transfer-encoding: chunked\r\n\r\n"
        )

    def write(self, framed: bytes) -> None:
        """Bytes as they go on the wire."""
        if not self.closed:
            self._transport.write(framed)

    def finish(self, framed: bytes) -> None:
        """The last bytes on the wire; the connection goes on to its next request."""
        if not self.closed:
            self._transport.write(framed)
            self.closed = True
            self._connection.done()

    def disconnected(self) -> None:
        if not self.closed:
            self.closed = True
            if self.on_disconnect is not None:
                self.on_disconnect()


class Connection(asyncio.Protocol):
    """One client connection. Requests that come while one is being answered wait their turn."""

    def __init__(self, app: App, keep_alive: float) -> None:
        self._app = app
        self._keep_alive = keep_alive
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[Request, bool]] = deque()
        self._exchange: Exchange | None = None
        self._last = False  # close after the exchange in progress
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour only

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(400, b"Invalid HTTP request received.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        if self._idle is not None:
            self._idle.cancel()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.disconnected()

    # -- httptools

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._size = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._size += len(body)
        if self._size > MAX_BODY:
            self._refuse(413, b"body too large")

    def on_message_complete(self) -> None:
        path, _, query = self._url.decode("latin-1").partition("?")
        method = self._parser.get_method().decode()
        request = Request(method, unquote(path), query, self._headers, b"".join(self._body))
        self._queue.append((request, self._parser.should_keep_alive()))
        if self._exchange is None:
            self._next()

    # -- exchanges

    def done(self) -> None:
        """The exchange has written its last byte."""
        self._exchange = None
        if self._transport is None:
            return
        if self._last:
            self._transport.close()
        elif self._queue:
            self._next()
        else:
            self._idle = asyncio.get_running_loop().call_later(self._keep_alive, self._transport.close)

    def _next(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        request, keep_alive = self._queue.popleft()
        if self._transport is not None and not self._transport.is_closing():
            self._last = not keep_alive
            exchange = self._exchange = Exchange(self, self._transport)
            self._app.handle(request, exchange)

    def _refuse(self, status: int, text: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(
                STATUS_LINES[status]
                + b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
                + text
            )
            self._transport.close()


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)
