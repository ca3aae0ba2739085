"""What is about a stored response reaches the instance that made it, through the real gate and sockets."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import LengthQuery
from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.accounts import Accounts
from router.build_fleet import build_fleet
from router.fleet import Signal
from router.gate import FleetGate
from router.ports import Caller, RelayRequest, Report, Slot
from router.rate_limits import RateLimits
from router.responses import HEAD_BYTES, Makers, referred, response_id
from router.sinks import NamingSink
from router.tally import Tally
from tests.fakes.edge import Edge, edge, post
from tests.fakes.engine import LAST_CHUNK, STREAM_HEAD, FakeEngine, Line, Received, answer, chunk
from tests.fakes.gate import FakeGate, FakeSlot

GONE = answer(b'{"error":{"message":"Response not found."}}', b"404 Not Found")


class Keeper:
    """An engine that keeps the responses it made. Its own port is in their ids."""

    def __init__(self) -> None:
        self.engine = FakeEngine(self.serve)
        self.kept: list[str] = []

    async def serve(self, line: Line, asked: Received) -> None:
        path = asked.head.split(b" ")[1].decode()
        body = orjson.loads(asked.body) if asked.body else {}
        if path != "/v1/responses":
            known = path.split("/")[3] in self.kept
            await line.send(answer(b'{"by":%d}' % self.engine.port) if known else GONE)
        elif body.get("previous_response_id") not in (None, *self.kept):
            await line.send(GONE)
        else:
            await line.send(self.made(stream=bool(body.get("stream"))))

    def made(self, stream: bool) -> bytes:
        self.kept.append(f"resp_{self.engine.port}-{len(self.kept)}")
        response = b'{"id":"%b","object":"response"}' % self.kept[-1].encode()
        if not stream:
            return answer(response)
        created = b'event: response.created\ndata: {"response":%b,"type":"response.created"}\n\n' % response
        delta = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"}\n\n'
        return STREAM_HEAD + chunk(created[:40]) + chunk(created[40:]) + chunk(delta) + LAST_CHUNK


class Front(FakeGate):
    """The real gate, where `edge` wants one that counts."""

    def __init__(self, gate: FleetGate) -> None:
        super().__init__()
        self.real = gate

    def admit(self, request: RelayRequest) -> AbstractAsyncContextManager[Slot]:
        return self.real.admit(request)

    def again(self, slot: Slot, report: Report) -> AbstractAsyncContextManager[Slot] | None:
        return self.real.again(slot, report)


@dataclass
class Site:
    edge: Edge
    gate: FleetGate
    keepers: list[Keeper]

    async def ask(self, body: bytes) -> str:
        """A new response: its id."""
        got = await self.edge.raw(post(body, "/v1/responses"))
        assert got.startswith(b"HTTP/1.1 200 "), got
        return response_id(got.partition(b"\r\n\r\n")[2].partition(b"data: ")[2] or got[got.index(b"{") :])

    async def about(self, method: str, path: str) -> bytes:
        return await self.edge.raw(
            b"%b %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            % (method.encode(), path.encode())
        )


@asynccontextmanager
async def site(*pools: str) -> AsyncIterator[Site]:
    """Two engines in one pool, or one in each of `pools`' models."""
    async with AsyncExitStack() as stack:
        keepers = [Keeper(), Keeper()]
        urls = []
        for keeper in keepers:
            await stack.enter_async_context(keeper.engine)
            urls.append(f"http://127.0.0.1:{keeper.engine.port}")
        entries = [{"name": f"i{n}", "url": url, "slots": 4} for n, url in enumerate(urls)]
        models = (
            [
                {"name": name, "pools": [{"name": f"p-{name}", "instances": [entry]}]}
                for name, entry in zip(pools, entries, strict=True)
            ]
            if pools
            else [{"name": "m", "pools": [{"name": "all", "instances": entries}]}]
        )
        fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models}))
        now = Seconds(time.monotonic())
        for _, _, member in fleet.members():
            member.status.signal(Signal.PROBE_PASSED, now)
            member.status.signal(Signal.REQUEST_SUCCEEDED, now)
            member.refresh(now)
        rng, limits = random.Random(5).randrange, RateLimits({}, now)
        gate = FleetGate(fleet, Accounts(fleet, Tally()), limits, Makers(), 0.1, rng, time.monotonic, print)
        yield Site(await stack.enter_async_context(edge(Front(gate))), gate, keepers)


def ask(stream: bool = False, previous: str | None = None, model: str = "m") -> bytes:
    body: dict[str, object] = {"model": model, "input": "hello", "stream": stream}
    return orjson.dumps(body if previous is None else body | {"previous_response_id": previous})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_read_deleted_and_cancelled_where_it_was_made(stream: bool) -> None:
    async with site() as it:
        made = [await it.ask(ask(stream)) for _ in range(12)]
        assert all(keeper.kept for keeper in it.keepers), "both engines made some"
        for name in made:
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                got = await it.about(method, f"/v1/responses/{name}{path}")
                assert got.startswith(b"HTTP/1.1 200 "), (name, got)
                assert got.endswith(b'{"by":%b}' % name[5:].partition("-")[0].encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_what_goes_on_from_a_response_goes_to_its_maker(stream: bool) -> None:
    async with site() as it:
        made = [await it.ask(ask()) for _ in range(12)]
        assert all(keeper.kept for keeper in it.keepers)
        for name in made:
            following = await it.ask(ask(stream, name))
            assert following.partition("-")[0] == name.partition("-")[0]
        await it.edge.settled()
        assert [member.open for _, _, member in it.gate.fleet.members()] == [0, 0]
        assert [member.law.book.running for _, _, member in it.gate.fleet.members()] == [0, 0]


async def test_one_that_nobody_knows_goes_anywhere_and_the_engine_says_so() -> None:
    async with site() as it:
        got = await it.about("GET", "/v1/responses/resp_never")
        assert got.startswith(b"HTTP/1.1 404 ")
        assert b"Response not found." in got
        got = await it.edge.raw(post(ask(previous="resp_never"), "/v1/responses"))
        assert got.startswith(b"HTTP/1.1 404 ")


async def test_its_maker_is_found_where_the_model_is_not_named() -> None:
    async with site("m", "other") as it:
        name = await it.ask(ask(model="other"))
        got = await it.about("GET", f"/v1/responses/{name}")
        assert got.endswith(b'{"by":%d}' % it.keepers[1].engine.port)
        got = await it.about("GET", "/v1/responses/resp_never")
        assert b"model_not_found" in got


async def test_a_maker_that_drains_still_answers_for_its_own_but_takes_no_more() -> None:
    async with site() as it:
        name = await it.ask(ask())
        for _, _, member in it.gate.fleet.members():
            member.status.draining = f"resp_{member.endpoint.port}" == name.partition("-")[0]
        it.gate.changed(Seconds(time.monotonic()))
        assert (await it.about("POST", f"/v1/responses/{name}/cancel")).startswith(b"HTTP/1.1 200 ")
        got = await it.edge.raw(post(ask(previous=name), "/v1/responses"))
        assert got.startswith(b"HTTP/1.1 503 ")
        assert b"(draining)" in got
        assert b"retry-after: 1" in got.lower()
        await it.ask(ask())  # others have the other one


def test_no_more_are_remembered_than_allowed_and_those_in_use_stay() -> None:
    makers = Makers(2)
    makers.made("a", "i0")
    makers.made("b", "i1")
    assert makers.of("a") == "i0"
    makers.made("c", "i0")
    assert (makers.of("a"), makers.of("b"), makers.of("c"), len(makers)) == ("i0", "", "i0", 2)


@pytest.mark.parametrize(
    ("route", "previous", "named"),
    [
        ("/v1/responses", "resp_1", "resp_1"),
        ("/v1/responses", "", ""),
        ("/v1/responses/resp_2", "", "resp_2"),
        ("/v1/responses/resp_2/cancel", "resp_1", "resp_2"),
    ],
)
def test_what_a_request_is_about(route: str, previous: str, named: str) -> None:
    assert referred(route, previous) == named


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b'{"id":"resp_1","object":"response"}', "resp_1"),
        (b' { "id" : "resp_1" }', "resp_1"),
        (b'data: {"type":"response.created","response":{"id":"resp_1"', "resp_1"),
        (b'{"object":"response","output":[{"id":"msg_1"}]}', ""),
        (b'{"id":"a b"}', ""),
        (b'{"id":"resp_', ""),
        (b"", ""),
    ],
)
def test_where_an_id_stands(head: bytes, found: str) -> None:
    assert response_id(head) == found


class Collected:
    def __init__(self) -> None:
        self.body = b""

    def feed(self, body: bytes) -> None:
        self.body += body


@given(st.lists(st.integers(0, 90), max_size=5), st.integers(0, 2 * HEAD_BYTES))
def test_wherever_the_answer_is_cut_its_id_is_told_once_and_its_bytes_pass(
    cuts: list[int], more: int
) -> None:
    data = b'data: {"response":{"id":"resp_1"},"type":"response.created"}\n\n' + b"x" * more
    gate = FakeGate()
    request = RelayRequest(
        "r", "/v1/responses", True, True, Caller(), LengthQuery("m", "", 0), 5, 1, Seconds(0.0)
    )
    slot = FakeSlot(gate, Keeper().engine.endpoint(), request)
    out = Collected()
    sink = NamingSink(slot, out)
    edges = sorted({0, *cuts, len(data)})
    for start, end in pairwise(edges):
        sink.feed(data[start:end])
    assert out.body == data
    assert slot.responses == ["resp_1"]
