"""How much of an engine's load is not ours is known from the moment its page was made, not from later."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from control.state import Flight, LoadBook
from joulegate.domain import RequestType, Size
from joulegate.units import Seconds
from router.fleet import InstanceStatus
from router.http_client import Reply, Unreachable
from router.ports import Endpoint, Engine
from router.prober import Prober


class FakeEngine:
    """Answers /metrics with a page made before `meanwhile` happens."""

    def __init__(self, running: int, waiting: int) -> None:
        gauges = {"running": running, "waiting": waiting}
        self.page = "".join(f'vllm:num_requests_{k}{{engine="0"}} {n}\n' for k, n in gauges.items())
        self.meanwhile: Callable[[], None] = lambda: None

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        if path != "/metrics":
            return Reply(200, b"")
        self.meanwhile()
        return Reply(200, self.page.encode())

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        raise AssertionError("a probe changes nothing")

    async def close(self) -> None: ...


def request(book: LoadBook, name: str) -> Flight:
    flight = Flight(
        name, RequestType(Size.S, Size.S), 10, 10, 5.0, 9.0, Seconds(0.0), Seconds(1.0), Seconds(1.0)
    )
    book.send(flight, Seconds(0.0))
    return flight


def probed(book: LoadBook, engine: FakeEngine, clock: Callable[[], float] = lambda: 1.0) -> InstanceStatus:
    status = InstanceStatus(Endpoint("i", "p", Engine.VLLM, "h", 1))
    prober = Prober(status, book, engine, clock, lambda: None, "/health", 1.0)
    asyncio.run(prober.tick())
    return status


def test_what_others_sent_is_what_is_beyond_our_own() -> None:
    book = LoadBook()
    request(book, "a")
    status = probed(book, FakeEngine(running=3, waiting=2))
    assert (status.running_elsewhere, status.waiting_elsewhere) == (2, 1)


def test_our_own_requests_that_ended_since_the_page_was_made_are_not_others() -> None:
    book = LoadBook()
    flights = [request(book, name) for name in "abc"]
    engine = FakeEngine(running=2, waiting=1)

    def all_end() -> None:
        for flight in flights:
            book.close(flight)

    engine.meanwhile = all_end
    status = probed(book, engine)
    assert (status.running_elsewhere, status.waiting_elsewhere) == (0, 0)


def test_our_own_requests_that_came_before_the_page_was_made_are_not_others() -> None:
    book = LoadBook()
    engine = FakeEngine(running=1, waiting=1)

    def two_come() -> None:
        request(book, "a")
        request(book, "b")

    engine.meanwhile = two_come
    status = probed(book, engine)
    assert (status.running_elsewhere, status.waiting_elsewhere) == (0, 0)


@pytest.mark.parametrize(("running", "waiting", "idle"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_an_engine_was_idle_when_it_was_asked_not_when_its_page_came(
    running: int, waiting: int, idle: bool
) -> None:
    engine, times = FakeEngine(running, waiting), [7.0]
    engine.meanwhile = lambda: times.append(9.0)
    status = probed(LoadBook(), engine, lambda: times[-1])
    assert status.idle_at == (7.0 if idle else float("-inf"))


class DeadEngine(FakeEngine):
    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        raise Unreachable("connection refused")


def test_an_instance_that_goes_down_is_a_warning_and_one_that_is_up_is_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    probed(LoadBook(), DeadEngine(0, 0))
    probed(LoadBook(), FakeEngine(0, 0))
    told = [(record.levelno, vars(record)["health"]) for record in caplog.records]
    assert told == [(logging.WARNING, "down"), (logging.INFO, "up")]
