"""A message whose head is that of the one before is not parsed again: what comes out is the same."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.connection import Connection
from router.errors import UpstreamError
from router.guard import Guard
from router.head import outline, whole_chunk
from router.limits import UpstreamLimits
from tests.fakes.recorder import Recorder, fed_guard

HEAD = b"POST /v1/x?y=z HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX-Y: %b\r\n\r\n%b"
REPLY = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-length: %d\r\nvary: Origin\r\n\r\n%b"
BITS = [
    b"\r\n",
    b" ",
    b"0",
    b"9",
    b"\r\nContent-Length: 3",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n\r\n",
    b"-",
]


class CarefulGuard(Guard):
    """Has its parser read every request."""

    def _remember(self, data: bytes) -> None:
        self.outline = None


class CarefulConnection(Connection):
    """Has its parser read every answer."""

    def _take_alike(self, data: bytes) -> bool:
        return False


@st.composite
def traffic(draw: st.DrawFn, form: str) -> list[bytes]:
    """Messages that are mostly alike, one of them mangled, read by read."""
    messages = []
    for _ in range(draw(st.integers(2, 4))):
        word = draw(st.sampled_from([b"one", b"two"]))
        body = b"x" * draw(st.sampled_from([0, 1, 9, 10, 11, 300]))
        values = (len(body), word, body) if form == "request" else (word, len(body), body)
        messages.append((HEAD if form == "request" else REPLY) % values)
    if draw(st.booleans()):
        which = draw(st.integers(0, len(messages) - 1))
        message = messages[which]
        at, size = draw(st.integers(0, len(message))), draw(st.integers(0, 3))
        messages[which] = message[:at] + draw(st.sampled_from([b"", *BITS])) + message[at + size :]
    reads = []
    for message in messages:
        cut = draw(st.sampled_from([0, 0, 0, draw(st.integers(0, len(message)))]))
        reads += [message[:cut], message[cut:]] if cut else [message]
    if draw(st.booleans()) and len(reads) > 1:
        joined = draw(st.integers(0, len(reads) - 2))
        reads[joined : joined + 2] = [reads[joined] + reads[joined + 1]]
    return [read for read in reads if read]


async def served(kind: type[Guard], reads: list[bytes]) -> tuple[bytes, list[object]]:
    """What the client got, and what the app was asked."""
    asked: list[object] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return
            body, more = body + event["body"], event["more_body"]
        asked.append((scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    written = await fed_guard(app, reads, kind)
    return written, asked


@settings(max_examples=400, deadline=None)
@given(traffic("request"))
async def test_the_app_is_asked_the_same(reads: list[bytes]) -> None:
    assert await served(Guard, reads) == await served(CarefulGuard, reads)


async def answers(kind: type[Connection], reads: list[bytes]) -> list[object]:
    """Of one connection that is asked again and again: what each answer said, until one goes wrong."""
    connection = kind(asyncio.get_running_loop(), UpstreamLimits())
    transport = Recorder()
    connection.connection_made(transport)
    found: list[object] = []
    left = iter(reads)
    while connection.usable:
        connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)
        task = asyncio.create_task(answer(connection))
        for read in left:
            connection.data_received(read)
            for _ in range(4):
                await asyncio.sleep(0)
            if task.done() or transport.ended:
                break
        else:
            connection.connection_lost(None)
        if transport.ended and not task.done():
            connection.connection_lost(None)
        found.append(await task)
    return found


async def answer(connection: Connection) -> object:
    try:
        await connection.answered(with_body=True)
        body = await connection.read(1 << 20)
    except UpstreamError as error:
        return type(error)
    return connection.status, connection.length, connection.head, body


@settings(max_examples=400, deadline=None)
@given(traffic("answer"))
async def test_an_instance_is_heard_the_same(reads: list[bytes]) -> None:
    assert await answers(Connection, reads) == await answers(CarefulConnection, reads)


class CarefulStream(Connection):
    """Has its parser read every chunk."""

    def data_received(self, data: bytes) -> None:
        self._between_chunks = False
        super().data_received(data)


class Kept:
    """A sink that keeps what it is fed. Implements router.ports.Sink."""

    def __init__(self) -> None:
        self.body = b""

    def feed(self, body: bytes) -> None:
        self.body += body


@st.composite
def stream(draw: st.DrawFn) -> list[bytes]:
    """A chunked answer, mostly a chunk a read, mangled and cut now and then."""
    reads = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"]
    for size in draw(st.lists(st.sampled_from([1, 2, 9, 26, 300]), max_size=6)):
        filling = draw(st.sampled_from([b"x", b"\r\n", b"0"]))
        reads.append(b"%x\r\n%b\r\n" % (size, (filling * size)[:size]))
    reads.append(b"0\r\n\r\n")
    for _ in range(draw(st.integers(0, 2))):
        which = draw(st.integers(0, len(reads) - 1))
        read, at = reads[which], draw(st.integers(0, len(reads[which])))
        kind = draw(st.sampled_from(["cut", "mangle", "join"]))
        if kind == "cut":
            reads[which : which + 1] = [read[:at], read[at:]]
        elif kind == "join":
            reads[which : which + 2] = [b"".join(reads[which : which + 2])]
        else:
            skip = draw(st.integers(0, 2))
            reads[which] = read[:at] + draw(st.sampled_from([b"", b"5;x=y", *BITS])) + read[at + skip :]
    return [read for read in reads if read]


async def streamed(kind: type[Connection], reads: list[bytes]) -> tuple[object, bytes]:
    """How the answer ended, and its body."""
    connection = kind(asyncio.get_running_loop(), UpstreamLimits())
    transport, sink = Recorder(), Kept()
    connection.connection_made(transport)
    connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)

    async def pumped() -> object:
        try:
            await connection.answered(with_body=True)
            await connection.pump(sink)
        except UpstreamError as error:
            return type(error)
        return connection.status, connection.usable

    task = asyncio.create_task(pumped())
    for read in reads:
        connection.data_received(read)
        for _ in range(4):
            await asyncio.sleep(0)
        if task.done() or transport.ended:
            break
    if not task.done():
        connection.connection_lost(None)
    return await task, sink.body


@settings(max_examples=400, deadline=None)
@given(stream())
async def test_a_stream_is_heard_the_same(reads: list[bytes]) -> None:
    assert await streamed(Connection, reads) == await streamed(CarefulStream, reads)


async def test_the_parser_is_spared() -> None:
    """Else the two tests above compare a thing with itself."""
    connection = Connection(asyncio.get_running_loop(), UpstreamLimits())
    connection.connection_made(Recorder())
    for size in (5, 7, 12_345):
        connection.send([b"GET / HTTP/1.1\r\n\r\n"], head_only=False)
        connection.data_received(REPLY % (b"now", size, b"y" * size))
        assert await connection.read(1 << 20) == b"y" * size
        assert connection.usable
    assert whole_chunk(b"5\r\nhello\r\n") == b"hello"
    for doubtful in (
        b"5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n",
        b"5;a\r\nhello\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello",
    ):
        assert whole_chunk(doubtful) == b""
    known = outline(REPLY % (b"now", 5, b"yyyyy"), 5)
    assert known is not None
    assert known.body_of(REPLY % (b"now", 7, b"y" * 7)) == b"y" * 7
    assert known.body_of(REPLY % (b"then", 7, b"y" * 7)) == b""
    assert known.body_of(REPLY % (b"now", 8, b"y" * 7)) == b""
