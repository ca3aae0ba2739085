"""Clients that want to hold, fill or confuse the gateway rather than to be served."""

import asyncio
import socket

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
