"""Instances whose engine serves another model than they are asked for, over real sockets."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.state import LoadBook
from joulegate.domain import LengthQuery
from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.errors import PoolDown
from router.fleet import Health, InstanceStatus
from router.poll_client import PollClient
from router.ports import Caller, Ending, Endpoint, Engine, RelayRequest, Report
from router.prober import LOOK_AGAIN, Prober
from router.runtime import Runtime
from router.served import listed, misfit
from tests.fakes.engine import FakeEngine, Line, Received, answer

MODELS = b"/v1/models"
PATIENCE = 30.0


def page(*names: str) -> bytes:
    return orjson.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


@dataclass
class Site:
    """An engine process at one address; `serve` starts another there."""

    models: bytes = b""
    status: bytes = b"200 OK"
    health: bytes = b"200 OK"
    started: float = 1.0
    asked: list[bytes] = field(default_factory=list)
    told: Callable[[], int] = lambda: 0
    known_at_gauges: int = 0  # what `told` said when they were asked for

    async def script(self, line: Line, received: Received) -> None:
        path = received.head.split(b" ")[1]
        self.asked.append(path)
        if path == MODELS:
            await line.send(answer(self.models, self.status))
        elif path == b"/metrics":
            self.known_at_gauges = self.told()
            await line.send(answer(b"process_start_time_seconds %f\n" % self.started))
        else:
            await line.send(answer(b"", self.health))

    @property
    def looks(self) -> int:
        return self.asked.count(MODELS)


class Watched:
    """A prober of `site` at a moment that the test sets."""

    def __init__(self, url: str, endpoint: Endpoint) -> None:
        self.now = 0.0
        self.changes = 0
        self.status = InstanceStatus(endpoint)
        self.client = PollClient(url)
        self.prober = Prober(
            self.status, LoadBook(), self.client, lambda: self.now, self._changed, "/health", PATIENCE
        )

    async def probe(self, after: float = 1.0) -> str:
        """Why it takes no requests."""
        self.now += after
        await self.prober.tick()
        return self.status.why_not(Seconds(self.now))

    def _changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def watched(
    site: Site, engine: Engine = Engine.VLLM, adapters: frozenset[str] = frozenset()
) -> AsyncIterator[Watched]:
    async with FakeEngine(site.script) as server:
        endpoint = Endpoint("i", "p", engine, "127.0.0.1", server.port, model="m", adapters=adapters)
        it = Watched(f"http://127.0.0.1:{server.port}", endpoint)
        try:
            yield it
        finally:
            await it.client.close()


async def test_an_engine_that_serves_another_model_is_out_until_it_serves_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    site = Site(page("other"))
    async with watched(site) as it:
        assert await it.probe() == await it.probe() == "serves other, not m"
        assert not it.status.may_take(0, Seconds(it.now))
        site.models = page("m", "other")
        assert await it.probe() == await it.probe() == ""
        assert it.status.may_take(0, Seconds(it.now))
    told = [(record.levelno, vars(record)["problem"]) for record in caplog.records]
    assert told == [(logging.WARNING, "serves other, not m"), (logging.INFO, "")]
    assert it.changes == 2


@pytest.mark.parametrize(
    ("models", "status"),
    [
        pytest.param(page("m"), b"200 OK", id="ours"),
        pytest.param(page("base", "lora"), b"200 OK", id="an adapter of ours"),
        pytest.param(page(), b"200 OK", id="none"),
        pytest.param(b"", b"200 OK", id="nothing"),
        pytest.param(b'{"data":[{"id":7},"x"]}', b"200 OK", id="garbled"),
        pytest.param(b"<html>", b"200 OK", id="no JSON"),
        pytest.param(page("other"), b"401 Unauthorized", id="a key is asked for"),
        pytest.param(page("other"), b"404 Not Found", id="no such route"),
        pytest.param(page("other"), b"405 Method Not Allowed", id="no such method"),
        pytest.param(page("other"), b"501 Not Implemented", id="not implemented"),
    ],
)
async def test_what_says_nothing_against_it_leaves_it_in_rotation(models: bytes, status: bytes) -> None:
    async with watched(Site(models, status), adapters=frozenset({"lora"})) as it:
        assert await it.probe() == ""
        assert it.status.health is Health.UP


async def test_tgi_serves_its_model_under_any_name_and_is_not_asked() -> None:
    site = Site(page("/models/file.gguf"))
    async with watched(site, Engine.TGI) as it:
        it.status.doubt()
        assert await it.probe() == ""
        assert site.looks == 0


async def test_another_engine_is_held_to_its_list_once_it_did_not_know_its_model() -> None:
    site = Site(page("/models/file.gguf"))
    async with watched(site, Engine.OPENAI) as it:
        assert await it.probe() == ""
        it.status.doubt()
        assert await it.probe() == await it.probe() == "serves /models/file.gguf, not m"
        site.models = page("m")
        assert await it.probe() == await it.probe() == ""
        site.models = page("/models/file.gguf")
        assert await it.probe() == ""


async def test_another_engine_is_tried_again_after_a_while() -> None:
    site = Site(page("/models/file.gguf"))
    async with watched(site, Engine.OPENAI) as it:
        it.status.doubt()
        assert await it.probe() == "serves /models/file.gguf, not m"
        assert await it.probe(after=LOOK_AGAIN) == ""


@pytest.mark.parametrize("status", [b"404 Not Found", b"401 Unauthorized"])
async def test_another_engine_need_have_no_list(status: bytes) -> None:
    async with watched(Site(page("other"), status), Engine.OPENAI) as it:
        it.status.doubt()
        assert await it.probe() == ""
        assert it.status.health is Health.UP


@pytest.mark.parametrize(
    ("said", "context"),
    [(8192, 8192), (None, None), (True, None), (-1, None), (0, None), ("8192", None), (10**18, None)],
)
async def test_the_context_of_its_model_is_read_where_it_says_it(said: object, context: int | None) -> None:
    card = {"id": "m", "max_model_len": said}
    async with watched(Site(orjson.dumps({"data": [{"id": "x", "max_model_len": 7}, card]}))) as it:
        assert await it.probe() == ""
        assert it.status.context == context


async def test_whoever_sends_requests_is_told_of_another_context_and_of_nothing_else() -> None:
    def said(tokens: int) -> bytes:
        return orjson.dumps({"data": [{"id": "m", "max_model_len": tokens}]})

    site = Site(said(4096))
    async with watched(site) as it:
        await it.probe()
        site.models = said(8192)
        await it.probe(after=LOOK_AGAIN)
        await it.probe(after=LOOK_AGAIN)
        assert (it.status.context, it.changes) == (8192, 2)


async def test_it_is_asked_now_and_then_not_with_each_probe() -> None:
    site = Site(page("m"))
    async with watched(site) as it:
        for _ in range(5):
            await it.probe()
        assert site.looks == 1
        site.models = page("other")
        assert await it.probe(after=LOOK_AGAIN) == "serves other, not m"


async def test_it_is_asked_at_once_when_its_process_is_another() -> None:
    site = Site(page("m"))
    async with watched(site) as it:
        assert await it.probe() == ""
        site.models, site.started = page("other"), 2.0
        assert await it.probe() == "serves other, not m"


async def test_it_is_asked_when_it_comes_back_and_before_a_request_may_go_there() -> None:
    site = Site(page("m"))
    async with watched(site) as it:
        await it.probe()
        site.health = b"503 Service Unavailable"
        await it.probe()
        assert "503" in await it.probe()
        site.health, site.models = b"200 OK", page("other")
        assert await it.probe() == "serves other, not m"
        assert it.status.health is Health.PROBATION


async def test_it_is_asked_after_a_request_whose_model_it_did_not_know() -> None:
    site = Site(page("m"))
    async with watched(site) as it:
        await it.probe()
        site.models = page("other")
        it.status.doubt()
        assert await it.probe() == "serves other, not m"


async def test_that_it_serves_another_model_is_told_before_its_gauges_are_read() -> None:
    site = Site(page("other"))
    async with watched(site) as it:
        site.told = lambda: it.changes
        assert await it.probe() == "serves other, not m"
        assert site.known_at_gauges == 1


async def test_it_is_asked_at_once_when_it_is_doubted() -> None:
    site = Site(page("m"))
    async with watched(site) as it:
        probing = asyncio.create_task(it.prober.run(interval=1000.0, first_after=0.0))
        try:
            await until(lambda: site.looks > 0)
            site.models = page("other")
            it.status.doubt()
            await until(lambda: it.status.misfit != "")
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)


async def test_the_gateway_sends_requests_to_the_instance_that_serves_the_model_then_to_none() -> None:
    good, wrong = Site(page("m")), Site(page("other"))
    async with FakeEngine(good.script) as one, FakeEngine(wrong.script) as two:
        urls = {"good": one.port, "wrong": two.port}
        instances = [{"name": name, "url": f"http://127.0.0.1:{port}"} for name, port in urls.items()]
        models = [{"name": "m", "pools": [{"name": "p", "instances": instances}]}]
        runtime = Runtime(
            Gateway.model_validate(
                {"version": 1, "health": {"interval_s": 0.05, "timeout_s": PATIENCE}, "models": models}
            )
        )
        await runtime.start()
        try:
            members = {member.law.name: member for _, _, member in runtime.fleet.members()}
            await until(lambda: members["good"].status.health is Health.UP and not members["wrong"].law.ready)
            for _ in range(20):
                async with runtime.gate.admit(request()) as slot:
                    assert slot.endpoint.name == "good"
                    slot.close(Report(Ending.OK, 200))
            good.models = page("other")
            async with runtime.gate.admit(request()) as slot:
                slot.close(Report(Ending.NO_MODEL, 404, error="The model `m` does not exist."))
            await until(lambda: not members["good"].law.ready)
            with pytest.raises(PoolDown, match="wrong serves other, not m"):
                async with runtime.gate.admit(request()):
                    pass
            good.models = page("m")
            await until(lambda: members["good"].law.ready)
        finally:
            await runtime.stop()


def request() -> RelayRequest:
    return RelayRequest(
        id="r",
        route="/v1/chat/completions",
        generative=True,
        stream=False,
        caller=Caller(),
        query=LengthQuery(model="m", key="", input_tokens=0),
        input_chars=4,
        fingerprint=1,
        arrived=Seconds(time.monotonic()),
    )


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for is seen, not told
            await asyncio.sleep(0.01)


@given(
    st.binary()
    | st.recursive(st.none() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
        orjson.dumps
    )
)
def test_no_page_is_a_fault(body: bytes) -> None:
    assert all(listed(body))


def test_a_long_list_is_cut_short_for_people() -> None:
    assert misfit([*"abcde"], ["m", "lora"]) == "serves a, b, c and 2 more, not m, lora"
    assert len(misfit(["x" * 10_000], ["m"])) < 200
