"""Clients that want to hold, fill or confuse the gateway rather than to be served."""

import asyncio
import gzip
import socket
import struct
import tracemalloc

import pytest

from router.limits import EdgeLimits
from router.ports import Endpoint, Engine
from tests.fakes.edge import Edge, edge, post
from tests.fakes.engine import LAST_CHUNK, FakeEngine, answer, chunk, says
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
NOWHERE = Endpoint("none", "pool", Engine.VLLM, "127.0.0.1", 9)


async def alone(it: Edge) -> None:
    """Until no connection is left."""
    async with asyncio.timeout(20):
        while it.server.server_state.connections:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("size", [20_000, 50_000, 300_000])
async def test_who_does_not_take_the_end_of_an_answer_is_parted_with(size: int, close: bool) -> None:
    """Less of it waits in this process than holds back an engine, so no other timer sees it."""
    limits = EdgeLimits(idle=0.1, reader=0.2)
    async with (
        FakeEngine(says(answer(b"x" * size))) as engine,
        edge(FakeGate(engine.endpoint()), limits=limits, send_buffer=4096) as it,
    ):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", it.port))
            client.sendall(post(ASK, close=close))
            while not engine.requests:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            await it.settled()
            await alone(it)


async def test_who_takes_an_answer_slowly_gets_all_of_it() -> None:
    limits = EdgeLimits(idle=0.1, reader=1.0)
    sent = answer(b"x" * 60_000)
    async with (
        FakeEngine(says(sent)) as engine,
        edge(FakeGate(engine.endpoint()), limits=limits, send_buffer=4096) as it,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port, limit=2048)
        writer.write(post(ASK))
        got = await reader.readuntil(b"\r\n\r\n")
        size = 0
        while data := await reader.read(1500):
            size += len(data)
            await asyncio.sleep(0.03)
        writer.close()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert size == 60_000


@pytest.mark.parametrize("chunks", [False, True])
async def test_what_is_not_the_relays_may_not_be_large(chunks: bool) -> None:
    """Whoever the caller is: FastAPI reads a body before it asks for a key."""
    body = b"x" * 300_000
    framed = chunk(body) + LAST_CHUNK if chunks else body
    length = b"transfer-encoding: chunked" if chunks else b"content-length: %d" % len(body)
    request = b"POST /admin/pause HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n%b" % (length, framed)
    async with edge(FakeGate(NOWHERE), limits=EdgeLimits(app_body=100_000)) as it:
        got = await asyncio.wait_for(it.raw(request), 20)
        await it.settled()
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in got
    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "start", [b"0\r\na: ", b"0\r\na", b"2;a=", b"2"], ids=["trailer", "name", "extension", "size"]
)
@pytest.mark.parametrize("sends", [b"b", b"0"])
async def test_framing_without_end_is_refused(start: bytes, sends: bytes) -> None:
    """The parser keeps what it cannot end yet, and takes longer over it with every read."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        writer.write(head + b"2\r\n{}\r\n" + start)
        reading = asyncio.create_task(reader.read(4096))
        async with asyncio.timeout(30):
            while not reading.done():
                writer.write(sends * 10_000)
                await asyncio.sleep(0.001)
        assert (await reading).split(b" ")[1] in (b"400", b"431")
        writer.close()
        await it.settled()
        await alone(it)
    assert engine.requests == []


async def test_a_body_in_the_smallest_of_pieces_is_taken() -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        writer.write(post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked"))
        for piece in (ASK[:10], b" " * 20_000, ASK[10:]):
            writer.write(b"".join(b"1;x=%b\r\n%c\r\n" % (b"y" * 10, byte) for byte in piece))
            await writer.drain()
        writer.write(LAST_CHUNK)
        got = await reader.read()
        writer.close()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert engine.requests[0].body == ASK[:10] + b" " * 20_000 + ASK[10:]


async def test_a_compressed_body_is_not_unpacked() -> None:
    """Ten thousand times smaller than what is in it: it goes on as it came, and nobody here looks inside."""
    bomb = gzip.compress(b" " * 20_000_000)
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        tracemalloc.start()
        got = await it.raw(post(bomb, headers=b"content-encoding: gzip\r\n"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert got.startswith(b"HTTP/1.1 200 ")
    assert engine.requests[0].body == bomb
    assert peak < 5_000_000


async def test_who_leaves_as_it_is_refused_ends_no_sweep() -> None:
    """The next one that is late is still parted with."""
    async with edge(FakeGate(NOWHERE), limits=EdgeLimits(head=0.2)) as it:
        for _ in range(20):
            client = socket.socket()
            client.connect(("127.0.0.1", it.port))
            client.send(b"GET / HTTP/1.1\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.02)
            client.close()
        _, writer = await it.connect()
        writer.write(b"GET / HTTP/1.1\r\n")
        await alone(it)
        writer.close()


async def test_large_bodies_sent_ahead_are_no_flood_of_framing() -> None:
    """One read ends a body and begins the next request: only what brings no body at all counts."""
    body = b"x" * 500_000
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        writer.write(post(body, close=False) * 3 + post(body))
        got = await reader.read()
        writer.close()
    assert got.count(b"HTTP/1.1 200 ") == 4
    assert [len(request.body) for request in engine.requests] == [500_000] * 4
