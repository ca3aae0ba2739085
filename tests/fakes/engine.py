"""Byte-exact servers: each connection plays a script of what to read, to send and to break."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from router.ports import Endpoint, Engine


@dataclass
class Received:
    """One request as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[bytes, bytes]:
        found = {}
        for line in self.head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b": ")
            found[name.lower()] = value
        return found


class Line:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number  # of this connection, from 0

    async def request(self) -> Received:
        """Raises IncompleteReadError when the client closes first."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        received = Received(head[:-4], b"")
        length = int(received.headers.get(b"content-length", b"0"))
        received.body = await self.reader.readexactly(length)
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the client is gone."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Line, Received], Awaitable[None]]


@dataclass
class FakeEngine:
    """Runs `script` once for each request; a script that returns leaves the connection open for the next."""

    script: Script
    connections: int = 0
    open_connections: int = 0
    requests: list[Received] = field(default_factory=list)
    port: int = 0
    tls: ssl.SSLContext | None = None
    _server: asyncio.Server | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def __aenter__(self) -> "FakeEngine":
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=2**26, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def endpoint(self, name: str = "one", engine: Engine = Engine.VLLM) -> Endpoint:
        return Endpoint(name=name, pool="pool", engine=engine, host="127.0.0.1", port=self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        line = Line(reader, writer, self.connections)
        self.connections += 1
        self.open_connections += 1
        try:
            while not writer.is_closing():
                received = await line.request()
                self.requests.append(received)
                await self.script(line, received)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()


def answer(
    body: bytes, status: bytes = b"200 OK", headers: bytes = b"content-type: application/json\r\n"
) -> bytes:
    """A whole response with a length."""
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, headers, len(body), body)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


LAST_CHUNK = b"0\r\n\r\n"


def event(text: str) -> bytes:
    """One chat chunk with output."""
    return (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
        % text.encode()
    )


ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def says(data: bytes) -> Script:
    """Answers every request with the same bytes."""

    async def script(line: Line, _: Received) -> None:
        await line.send(data)

    return script


def dies_after(data: bytes, seconds: float = 0.0) -> Script:
    """Resets the connection; `seconds`: after the client has had time to read."""

    async def script(line: Line, _: Received) -> None:
        await line.send(data)
        await asyncio.sleep(seconds)
        line.reset()

    return script


def closes_after(data: bytes) -> Script:
    async def script(line: Line, _: Received) -> None:
        await line.send(data)
        line.writer.close()

    return script


def hangs_after(data: bytes) -> Script:
    async def script(line: Line, _: Received) -> None:
        await line.send(data)
        await line.closed()

    return script


def later(first: bytes, second: bytes) -> Script:
    """Two reads, then silence."""

    async def script(line: Line, _: Received) -> None:
        await line.send(first)
        await asyncio.sleep(0.05)
        await line.send(second)
        await line.closed()

    return script
