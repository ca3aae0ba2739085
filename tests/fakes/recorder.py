"""A transport without a socket, and both sides' protocols fed over it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from router.connection import Connection
from router.errors import UpstreamError
from router.guard import Guard
from router.limits import EdgeLimits, UpstreamLimits
from router.relay import Relay
from router.warden import Warden

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
TURNS = 6  # of the loop after each read: more than an app needs to answer


class Recorder(asyncio.Transport):
    """Keeps what is written; refuses writes after the end, as sockets do."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written after the end"
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def fed_guard(
    app: App,
    reads: Sequence[bytes],
    kind: type[Guard] = Guard,
    turns: int = TURNS,
    relay: Relay | None = None,
) -> bytes:
    """What a client gets that sends `reads` over one connection; `turns` of the loop after each."""
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
    config.load()
    limits = EdgeLimits()
    guard = kind(config, ServerState(), {}, limits=limits, warden=Warden(limits), relay=relay)
    transport = Recorder()
    guard.connection_made(transport)
    for read in reads:
        if transport.ended:
            break
        guard.data_received(read)
        for _ in range(turns):
            await asyncio.sleep(0)
    written = transport.written
    guard.connection_lost(None)
    while guard.tasks:  # noqa: ASYNC110 - uvicorn tells nobody when a task ends
        await asyncio.sleep(0)
    return written


async def fed_connection(reads: Sequence[bytes]) -> None:
    """An instance sends `reads`: an answer, or an UpstreamError; nothing doubtful is handed on."""
    connection = Connection(asyncio.get_running_loop(), UpstreamLimits())
    transport = Recorder()
    connection.connection_made(transport)
    connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)
    asked = asyncio.create_task(connection.answered(with_body=False))
    for read in reads:
        if transport.ended:
            break
        connection.data_received(read)
        await asyncio.sleep(0)
    connection.connection_lost(None)
    try:
        await asked
        await connection.read(1 << 20)
    except UpstreamError:
        return
    assert 200 <= connection.status < 1000
    names = {name for name, _ in connection.head.headers}
    assert not names & {b"content-length", b"transfer-encoding", b"connection", b"upgrade"}
    assert not any(c in value for _, value in connection.head.headers for c in b"\r\n\0")
