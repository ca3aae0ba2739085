"""Shell: the agent's HTTP/1.1 server: httptools in, bytes out, everything bounded.

An answer is made in one call on the event loop, with no task and no framework in between: a sync costs a
third of what it did through uvicorn. A request is whole within PATIENCE of its first byte (of the connection,
for the first one), or its connection is closed; so is one that idles, sends more than it may, or does not
take its answers. Requests of one connection are answered one at a time; what is sent ahead of a slow answer
ends the connection.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from joulegate.units import Seconds
from joulegate.wire import WireError

MAX_CONNECTIONS = 128
MAX_HEAD = 16 * 1024  # bytes
MAX_BODY = 64 * 1024
MAX_UNSENT = 256 * 1024  # bytes of answers that a client has not taken
PATIENCE = 5.0  # seconds
IDLE = 30.0  # seconds without a request
LAST = 1.0  # seconds that clients get to take their answers when the server stops
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EVENTS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-store\r\nconnection: close\r\n\r\n"
)
LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


@dataclass(slots=True)
class Asked:
    """One request. Header names are in lower case. Not frozen, only to be made faster; nobody changes it."""

    method: bytes
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes
    received: Seconds  # when its last byte had come


@dataclass(slots=True)
class Reply:
    """Not frozen, only to be made faster; nobody changes it."""

    status: int
    content_type: bytes
    body: bytes


Later = Coroutine[None, None, Reply]  # an answer that takes a while
Stream = AsyncGenerator[bytes, None]  # server-sent events; its client's leaving closes it


class Face(Protocol):
    """Who answers. Raises nothing."""

    def answer(self, asked: Asked) -> Reply | Later | Stream: ...


class Edge(asyncio.Protocol):
    """One connection."""

    def __init__(self, face: Face, connections: "set[Edge]") -> None:
        self._face = face
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._work: asyncio.Task[None] | None = None  # on an answer that takes a while
        self._due: float | None = None  # when the request that is being received must be whole
        self._quiet_since = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of the request so far, while its head is not complete
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour only
        self._connections.add(self)
        if len(self._connections) > MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._due = self._loop.time() + PATIENCE
        self._look = self._loop.call_at(self._due, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        if self._look is not None:
            self._look.cancel()
        if self._work is not None:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        if self._due is None:
            self._due, self._head = self._loop.time() + PATIENCE, 0
        if self._head >= 0:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")
        if self._head > MAX_HEAD:
            self._refuse(431, f"a head may have {MAX_HEAD} bytes")

    # -- httptools

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._head = -1
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY:
            self._refuse(413, f"a body may have {MAX_BODY} bytes")

    def on_message_complete(self) -> None:
        self._due, self._quiet_since = None, self._loop.time()
        if self._transport is None or self._transport.is_closing():
            return
        if self._work is not None:
            self._end()
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        received = Seconds(time.monotonic())
        method = self._parser.get_method()
        answer = self._face.answer(Asked(method, path, query, self._headers, self._body, received))
        last = method == b"HEAD" or not self._parser.should_keep_alive()
        if isinstance(answer, Reply):
            self._reply(answer, last)
        elif isinstance(answer, AsyncGenerator):
            self._work = self._loop.create_task(self._pass_on(answer))
        else:
            self._work = self._loop.create_task(self._wait_for(answer, last))

    # -- answers

    def _reply(self, reply: Reply, last: bool) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._transport.abort()
            return
        ending = b"connection: close\r\n\r\n" if last else b"\r\n"
        head = b"%scontent-type: %s\r\ncontent-length: %d\r\n%s"
        self._transport.write(
            head % (LINES[reply.status], reply.content_type, len(reply.body), ending) + reply.body
        )
        if last:
            self._transport.close()

    async def _wait_for(self, later: Later, last: bool) -> None:
        try:
            self._reply(await later, last)
        finally:
            self._work = None

    async def _pass_on(self, events: Stream) -> None:
        """Until the client leaves, or does not take what it is sent."""
        try:
            async with contextlib.aclosing(events):
                self._write(EVENTS)
                async for event in events:
                    self._write(event)
        finally:
            self._end()

    def _write(self, chunk: bytes) -> None:
        if self._transport is not None:
            self._transport.write(chunk)
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self._transport.abort()

    def _check(self) -> None:
        now = self._loop.time()
        if self._due is not None and now >= self._due:
            self._refuse(408, f"a request must be whole within {PATIENCE:.0f} s")
        elif self._due is None and self._work is None and now - self._quiet_since >= IDLE:
            self._end()
        else:
            self._look = self._loop.call_at(self._due or now + PATIENCE, self._check)

    def _refuse(self, status: int, why: str) -> None:
        if self._transport is not None and not self._transport.is_closing():
            body = WireError(error=why).model_dump_json().encode()
            self._reply(Reply(status, b"application/json", body), last=True)

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def hang_up(self) -> None:
        """The server stops: what is written still goes out, streams end."""
        if self._work is not None:
            self._work.cancel()
        self._end()


class Server:
    """Listens from `start` to `stop`."""

    def __init__(self, face: Face, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._face = face
        self._listener = listener
        self._tls = tls
        self._connections: set[Edge] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        patience = PATIENCE if self._tls is not None else None
        if self._listener.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._edge, sock=self._listener)
        else:
            self._server = await loop.create_server(
                self._edge, sock=self._listener, ssl=self._tls, ssl_handshake_timeout=patience
            )

    def _edge(self) -> Edge:
        return Edge(self._face, self._connections)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.hang_up()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), LAST)
