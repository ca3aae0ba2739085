"""Shell: a minimal HTTP/1.1 client for streams: one request at a time on a connection, kept alive.

It reads server-sent events with byte searches, and parses JSON only for what comes once an answer.
"""

import asyncio
import ssl
import time
from functools import partial
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from joulegate.errors import UserError

FETCH_SECONDS = 10.0
IDLE_SECONDS = 2.0  # a server may close an idle connection after 5 s: this one is not used again after 2


class Reader(Protocol):
    """What the answer to one request goes to. `now` is time.monotonic()."""

    def status(self, code: int) -> None: ...

    def body(self, part: bytes, now: float) -> None: ...

    def ended(self, now: float, error: str) -> None:
        """The answer is over; `error` is empty when it came whole."""
        ...


class Connection(asyncio.Protocol):
    """One connection to the target."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reader: Reader | None = None
        self._now = 0.0
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, reader: Reader) -> None:
        assert self._transport is not None
        self._reader = reader
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by behaviour only

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"bad HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        self._now = time.monotonic()
        self._end("connection closed" if exc is None else f"connection lost: {exc}")

    # -- httptools

    def on_headers_complete(self) -> None:
        if self._reader is not None:
            self._reader.status(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._reader is not None:
            self._reader.body(body, self._now)

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        self._end("")
        if keep and self.usable:
            self.idle_since = self._now
            self._pool.idle.append(self)
        else:
            self.close()

    def _end(self, error: str) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.ended(self._now, error)


class Pool:
    """Connections to one target; as many as there are requests in flight."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if secure else 80)
        self.authority = parts.netloc.rpartition("@")[2]
        self._ssl = ssl.create_default_context() if secure else None
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()

    async def send(self, request: bytes, reader: Reader) -> None:
        """Returns once the request is written. A failure to connect goes to the reader."""
        connection = self._idle()
        if connection is None:
            try:
                connection = await self._connect()
            except OSError as error:
                reader.ended(time.monotonic(), f"cannot connect: {error.strerror or error}")
                return
        connection.send(request, reader)

    def send_now(self, request: bytes, reader: Reader) -> bool:
        """Send on an idle connection. False: there is none."""
        connection = self._idle()
        if connection is None:
            return False
        connection.send(request, reader)
        return True

    def forget(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        for connection in list(self.open):
            connection.close()

    def _idle(self) -> Connection | None:
        now = time.monotonic()
        while self.idle:
            connection = self.idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            partial(Connection, self), self.host, self.port, ssl=self._ssl
        )
        self.open.add(connection)
        return connection


class _Collected:
    """Reader of one short answer."""

    def __init__(self) -> None:
        self.code = 0
        self.parts: list[bytes] = []
        self.done = asyncio.get_running_loop().create_future()

    def status(self, code: int) -> None:
        self.code = code

    def body(self, part: bytes, now: float) -> None:
        self.parts.append(part)

    def ended(self, now: float, error: str) -> None:
        if not self.done.done():
            self.done.set_result(error)


async def fetch(url: str, path: str, api_key: str | None) -> tuple[int, bytes]:
    """(status, body) of a GET. Raises UserError when nobody answers."""
    pool = Pool(url)
    reader = _Collected()
    key = f"authorization: Bearer {api_key}\r\n" if api_key is not None else ""
    request = f"GET {path} HTTP/1.1\r\nhost: {pool.authority}\r\n{key}connection: close\r\n\r\n"
    await pool.send(request.encode(), reader)
    try:
        error = await asyncio.wait_for(reader.done, FETCH_SECONDS)
    except TimeoutError:
        error = f"no answer in {FETCH_SECONDS:.0f} s"
    pool.close()
    if error:
        raise UserError(f"{url}: {error}", "is it running? give its address with --url")
    return reader.code, b"".join(reader.parts)
