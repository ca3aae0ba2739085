"""The whole path of the bytes in this process: uvicorn with the guard, the relay, the upstream pool."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from router.errors import GatewayError
from router.guard import guard
from router.keys import Keys
from router.limits import EdgeLimits, RelayLimits, UpstreamLimits
from router.relay import Relay
from router.upstream import UpstreamPool
from tests.fakes.gate import FakeGate

Message = MutableMapping[str, Any]


async def hello(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """A plain ASGI app: answers with the body it got."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


@dataclass
class Edge:
    port: int
    gate: FakeGate
    relay: Relay
    pool: UpstreamPool
    server: uvicorn.Server
    refused: list[GatewayError] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**26)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes, return all that comes until the gateway closes."""
        reader, writer = await self.connect()
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            data = await reader.read()
        writer.close()
        return data

    async def settled(self) -> None:
        """Until no request is in flight: no task, no slot, no exchange."""
        while not self.is_idle():  # noqa: ASYNC110 - uvicorn tells nobody when a task ends
            await asyncio.sleep(0.002)

    def is_idle(self) -> bool:
        return not (self.gate.in_flight or self.pool.busy_connections or self.server.server_state.tasks)


@asynccontextmanager
async def edge(
    gate: FakeGate,
    *,
    keys: Keys | None = None,
    limits: EdgeLimits | None = None,
    upstream: UpstreamLimits | None = None,
    relay: RelayLimits | None = None,
    tls: tuple[Path, Path] | None = None,
    send_buffer: int | None = None,
) -> AsyncIterator[Edge]:
    """`send_buffer`: bytes that the kernel takes for a client that does not read; None: as it likes."""
    pool = UpstreamPool(upstream or UpstreamLimits())
    refused: list[GatewayError] = []
    ours = Relay(gate, pool, keys or Keys(), relay or RelayLimits(), refused.append)
    config = uvicorn.Config(
        hello,
        http=guard(limits or EdgeLimits(), ours),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        try:
            yield Edge(listener.getsockname()[1], gate, ours, pool, server, refused)
        finally:
            server.force_exit = True
            await server.shutdown()
            await pool.aclose()


def post(body: bytes, path: str = "/v1/chat/completions", headers: bytes = b"", close: bool = True) -> bytes:
    """A request as bytes."""
    connection = b"connection: close\r\n" if close else b""
    return (
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%b%bcontent-length: %d\r\n\r\n%b"
        % (
            path.encode(),
            connection,
            headers,
            len(body),
            body,
        )
    )


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body; fails if it does not end as it must."""
    out = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert body == b"\r\n", body
            return out
        out += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
