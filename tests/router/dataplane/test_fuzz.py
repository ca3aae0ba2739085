"""Bytes nobody should send, to both parsers: no exception, no second answer, nothing doubtful passed on."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.connection import Connection
from router.limits import UpstreamLimits
from tests.fakes.edge import hello
from tests.fakes.engine import LAST_CHUNK, STREAM_HEAD, answer, chunk, event
from tests.fakes.recorder import Recorder, fed_connection, fed_guard

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


@settings(max_examples=300, deadline=None)
@given(mangled(REQUESTS))
async def test_whatever_a_client_sends_is_answered_once_each(pieces: list[bytes]) -> None:
    called = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal called
        called += 1
        assert [name for name, _ in scope["headers"]].count(b"host") <= 1
        await hello(scope, receive, send)

    written = await fed_guard(app, pieces)
    answers = written.count(b"HTTP/1.1 ") - written.count(b"HTTP/1.1 100 Continue")
    assert answers <= called + 1
    if b'{"error"' in written:
        assert b"connection: close" in written


@settings(max_examples=300, deadline=None)
@given(mangled(ANSWERS))
async def test_whatever_an_instance_sends_is_an_answer_or_an_upstream_error(pieces: list[bytes]) -> None:
    await fed_connection(pieces)


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
