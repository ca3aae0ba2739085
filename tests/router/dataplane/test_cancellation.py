"""A client that leaves, wherever its request waits: nothing is left behind, the engine hears of it."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from router.keys import Keys
from router.limits import EdgeLimits, RelayLimits, UpstreamLimits
from router.ports import Ending, Endpoint, Engine
from router.relay import Relay
from router.upstream import UpstreamPool
from tests.fakes.edge import Edge, edge, hello, post
from tests.fakes.engine import STREAM_HEAD, FakeEngine, Line, Received, Script, answer, chunk, event, says
from tests.fakes.gate import FakeGate
from tests.fakes.recorder import fed_guard

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ASK_STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
PATIENCE = 5.0


class Witness:
    """An engine's script that sends something, says when it was reached, and when the gateway hung up."""

    def __init__(self, sends: bytes) -> None:
        self.sends = sends
        self.reached = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def __call__(self, line: Line, _: Received) -> None:
        await line.send(self.sends)
        self.reached.set()
        await line.closed()
        self.hung_up.set()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.002)


async def clean(it: Edge) -> None:
    await asyncio.wait_for(it.settled(), PATIENCE)
    assert it.gate.waiting == it.gate.in_flight == 0
    assert it.pool.busy_connections == 0


@pytest.mark.parametrize(
    ("sends", "body"),
    [
        pytest.param(b"", ASK, id="before the head, one answer"),
        pytest.param(b"", ASK_STREAM, id="before the head, stream"),
        pytest.param(b"HTTP/1.1 200", ASK, id="inside the head"),
        pytest.param(STREAM_HEAD, ASK_STREAM, id="between head and first byte"),
        pytest.param(STREAM_HEAD + chunk(event("a")), ASK_STREAM, id="inside the stream"),
        pytest.param(answer(b'{"a":1}')[:-2], ASK, id="inside one answer"),
        pytest.param(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nabc", ASK, id="inside an error"),
    ],
)
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_is_seen_by_the_engine(sends: bytes, body: bytes, reset: bool) -> None:
    witness = Witness(sends)
    async with FakeEngine(witness) as engine:
        gate = FakeGate(engine.endpoint(), retries=1)
        async with edge(gate) as it:
            reader, writer = await it.connect()
            writer.write(post(body))
            await witness.reached.wait()
            if event("a") in sends:
                await reader.readuntil(b"\n\n")
            if reset:
                writer.transport.abort()
            else:
                writer.close()
            await asyncio.wait_for(witness.hung_up.wait(), PATIENCE)
            await clean(it)
            assert it.pool.open_connections == 0
    assert [report.ending for report in gate.reports] == [Ending.CLIENT_LEFT]


async def test_a_client_that_leaves_the_queue_never_reaches_an_engine() -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint())
        gate.open_.clear()
        async with edge(gate) as it:
            _, writer = await it.connect()
            writer.write(post(ASK))
            await until(lambda: gate.waiting)
            writer.close()
            await clean(it)
    assert gate.reports == []
    assert engine.requests == []


async def test_a_client_that_leaves_while_it_sends_its_body() -> None:
    gate = FakeGate(Endpoint("none", "pool", Engine.VLLM, "127.0.0.1", 9))
    async with edge(gate) as it:
        _, writer = await it.connect()
        writer.write(post(ASK)[:-5])
        await until(lambda: it.server.server_state.tasks)
        writer.close()
        await clean(it)
    assert gate.requests == []


async def test_a_client_that_leaves_while_the_gateway_connects() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:  # a full backlog: further connections hang
            filler.setblocking(False)
            filler.connect_ex(address)
        gate = FakeGate(Endpoint("full", "pool", Engine.VLLM, *address))
        async with edge(gate, upstream=UpstreamLimits(connect=60.0)) as it:
            _, writer = await it.connect()
            writer.write(post(ASK))
            await until(lambda: gate.in_flight)
            writer.close()
            await clean(it)
        for filler in fillers:
            filler.close()
    assert [report.ending for report in gate.reports] == [Ending.CLIENT_LEFT]


async def test_a_full_backlog_is_an_instance_down() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        gate = FakeGate(Endpoint("full", "pool", Engine.VLLM, *address))
        async with edge(gate, upstream=UpstreamLimits(connect=0.1)) as it:
            got = await it.raw(post(ASK))
            await clean(it)
        for filler in fillers:
            filler.close()
    assert got.startswith(b"HTTP/1.1 502 ")
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


def endless() -> Script:
    """Streams as fast as it is read; counts what it could send."""

    async def script(line: Line, _: Received) -> None:
        await line.send(STREAM_HEAD)
        while True:
            await line.send(chunk(event("x" * 60_000)))

    return script


async def test_a_client_that_does_not_read_holds_back_the_engine_and_is_parted_with() -> None:
    async with FakeEngine(endless()) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, limits=EdgeLimits(reader=0.3)) as it:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                client.connect(("127.0.0.1", it.port))
                client.sendall(post(ASK_STREAM))
                await until(lambda: gate.in_flight)
                await clean(it)
            # kernel buffers, both transports' and the pool's: far less than it would take unread for 0.3 s
            assert sum(gate.slots[0].progressed) < 400
    assert [report.ending for report in gate.reports] == [Ending.CLIENT_LEFT]


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    pieces = [chunk(event("x" * 60_000)) for _ in range(100)]
    sent = STREAM_HEAD + b"".join(pieces) + b"0\r\n\r\n"
    async with FakeEngine(says(sent)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            reader, writer = await it.connect()
            writer.write(post(ASK_STREAM))
            got = b""
            while part := await reader.read(50_000):
                got += part
                await asyncio.sleep(0)
            writer.close()
            await clean(it)
    assert got.endswith(b"\r\n0\r\n\r\n")
    assert got.count(b"x" * 60_000) == 100
    assert [report.ending for report in gate.reports] == [Ending.OK]


async def test_a_gateway_that_stops_says_so_to_whom_it_can() -> None:
    witness = Witness(STREAM_HEAD + chunk(event("a")))
    async with FakeEngine(witness) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            reader, writer = await it.connect()
            writer.write(post(ASK_STREAM))
            await reader.readuntil(b"\n\n")
            for task in list(it.server.server_state.tasks):
                task.cancel()
            rest = await reader.read()
            writer.close()
            await clean(it)
    assert b"the gateway is stopping" in rest
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_body_over_the_limit_is_refused_before_it_arrives() -> None:
    gate = FakeGate(Endpoint("none", "pool", Engine.VLLM, "127.0.0.1", 9))
    async with edge(gate, relay=RelayLimits(body=1000)) as it:
        reader, writer = await it.connect()
        writer.write(post(b"x" * 5000)[:300])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        writer.close()
        await clean(it)
    assert gate.requests == []


async def test_a_client_that_is_gone_before_its_turn_is_not_served(caplog: pytest.LogCaptureFixture) -> None:
    gate, pool = FakeGate(), UpstreamPool(UpstreamLimits())
    relay = Relay(gate, pool, Keys(), RelayLimits(), lambda error: pytest.fail(str(error)))
    written = await fed_guard(hello, [post(ASK)], turns=0, relay=relay)
    assert (written, gate.requests, caplog.records) == (b"", [], [])
    await pool.aclose()
