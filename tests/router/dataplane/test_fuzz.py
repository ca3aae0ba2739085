"""Bytes nobody should send, to both parsers: no exception, no second answer, nothing doubtful passed on."""

import asyncio
from typing import Any

import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from router.connection import Connection
from router.errors import UpstreamError
from router.guard import Guard, Warden
from router.limits import EdgeLimits, UpstreamLimits
from tests.fakes.edge import hello
from tests.fakes.engine import LAST_CHUNK, STREAM_HEAD, answer, chunk, event
from tests.fakes.recorder import Recorder

REQUESTS = [
    b"GET /x?y=z HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET http://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
]
ANSWERS = [
    answer(b'{"a":1}'),
    STREAM_HEAD + chunk(event("a")) + chunk(event("b")) + LAST_CHUNK,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    STREAM_HEAD + chunk(b"x") + b"0\r\nTrailer: y\r\n\r\n",
]
BITS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b":",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"HTTP/1.1",
    b"%00",
    b"\xff",
    b"0",
]


@st.composite
def mangled(draw: st.DrawFn, seeds: list[bytes]) -> list[bytes]:
    """One or more messages with a few bytes inserted, dropped, doubled, in pieces."""
    data = b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        middle = draw(st.sampled_from([b"", data[at : at + size] * 2, *BITS]))
        data = data[:at] + middle + data[at + size :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def feed_guard(pieces: list[bytes]) -> tuple[bytes, int]:
    """What the client gets, and how often the app was called."""
    called = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal called
        called += 1
        assert [name for name, _ in scope["headers"]].count(b"host") <= 1
        await hello(scope, receive, send)

    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
    config.load()
    limits = EdgeLimits()
    guard = Guard(config, ServerState(), {}, limits=limits, warden=Warden(limits))
    transport = Recorder()
    guard.connection_made(transport)
    for piece in pieces:
        if transport.ended:
            break
        guard.data_received(piece)
        for _ in range(4):
            await asyncio.sleep(0)
    written = transport.written
    guard.connection_lost(None)
    while guard.tasks:  # noqa: ASYNC110 - uvicorn tells nobody when a task ends
        await asyncio.sleep(0)
    return written, called


@settings(max_examples=300, deadline=None)
@given(mangled(REQUESTS))
async def test_whatever_a_client_sends_is_answered_once_each(pieces: list[bytes]) -> None:
    written, called = await feed_guard(pieces)
    answers = written.count(b"HTTP/1.1 ") - written.count(b"HTTP/1.1 100 Continue")
    assert answers <= called + 1
    if b'{"error"' in written:
        assert b"connection: close" in written


async def feed_connection(pieces: list[bytes]) -> None:
    loop = asyncio.get_running_loop()
    connection = Connection(loop, UpstreamLimits())
    transport = Recorder()
    connection.connection_made(transport)
    connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)
    asked = asyncio.create_task(connection.answered(with_body=False))
    for piece in pieces:
        if transport.ended:
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    connection.connection_lost(None)
    try:
        await asked
        await connection.read(1 << 20)
    except UpstreamError:
        return
    assert 200 <= connection.status < 1000
    assert not any(b"\r" in value or b"\n" in value for _, value in connection.head.headers)
    names = {name for name, _ in connection.head.headers}
    assert not names & {b"content-length", b"transfer-encoding", b"connection"}


@settings(max_examples=300, deadline=None)
@given(mangled(ANSWERS))
async def test_whatever_an_instance_sends_is_an_answer_or_an_upstream_error(pieces: list[bytes]) -> None:
    await feed_connection(pieces)


async def test_an_answer_cut_at_every_byte_is_the_same() -> None:
    for sent in ANSWERS:
        bodies = set()
        for at in range(len(sent)):
            connection = Connection(asyncio.get_running_loop(), UpstreamLimits())
            connection.connection_made(Recorder())
            connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)
            connection.data_received(sent[:at]) if at else None
            connection.data_received(sent[at:])
            usable = connection.usable
            connection.connection_lost(None)
            bodies.add((connection.status, await connection.read(1 << 20)))
            assert not usable or sent.endswith((b"\r\n\r\n", b"}"))
        assert len(bodies) == 1, sent
