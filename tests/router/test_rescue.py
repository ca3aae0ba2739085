"""The gate takes back what an instance does not begin to answer, within the pool's retry budget."""

import asyncio
from contextlib import AsyncExitStack

import orjson
import pytest

from control.state import Room
from joulegate.domain import LengthQuery
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds
from predictor.physics import PhysicsModel
from router.accounts import estimate
from router.errors import Resteered, Squashed, UpstreamError
from router.fleet import Health, Signal
from router.rescue import Rescue
from tests.router.test_gate import DOWN, House

MODEL = PhysicsModel(parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes())))


def stuck_house(shed: bool = False) -> House:
    """`i0` alone takes requests at first; `i1` is there once `free` is called."""
    house = House(instances=2, slots=16, shed=shed)
    for member in house.members:
        member.law.model = MODEL
        member.law.at_max = Room(100, 1e6, Seconds(house.now))
    house.members[1].status.draining = True
    house.members[1].refresh(Seconds(house.now))
    return house


def free(house: House) -> None:
    house.members[1].status.draining = False
    house.members[1].refresh(Seconds(house.now))


async def sent(house: House, places: AsyncExitStack, count: int) -> list[list[UpstreamError]]:
    """So many requests sent to `i0`; what each is taken back with."""
    recalled: list[list[UpstreamError]] = []
    for _ in range(count):
        slot = await places.enter_async_context(house.gate.admit(house.request()))
        recalled.append([])
        slot.sent(Seconds(house.now), recalled[-1].append)
    return recalled


async def test_what_a_stuck_instance_holds_is_taken_back_and_it_is_not_asked_first_again() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        recalled = await sent(house, places, 2)
        free(house)
        house.now += 5.0
        Rescue(house.gate).tick(Seconds(house.now))
        await asyncio.sleep(0)
        assert house.members[0].status.health is Health.SUSPECT
    assert [type(errors[0]) for errors in recalled] == [Resteered, Resteered]


async def unanswered(
    house: House, places: AsyncExitStack, tokens: int | None = 10, idle: bool = False
) -> list[UpstreamError]:
    """A request for an answer in one piece, sent to `i0`, which says nothing for three seconds.

    `idle`: but on its page of metrics, that it has nothing to do.
    """
    request = house.request(stream=False, query=LengthQuery("m", "", 100, max_tokens=tokens))
    slot = await places.enter_async_context(house.gate.admit(request))
    recalled: list[UpstreamError] = []
    slot.sent(Seconds(house.now), recalled.append)
    free(house)
    for _ in range(12):
        house.now += 0.25
        if idle:
            house.members[0].status.idle_at = Seconds(house.now)
        estimate(house.members[0], Seconds(house.now))
        Rescue(house.gate).tick(Seconds(house.now))
        await asyncio.sleep(0)
    return recalled


async def test_an_answer_that_does_not_stream_is_missed_too() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        recalled = await unanswered(house, places)
        assert house.members[0].law.book.prompts == {}, "its first token is taken to have come"
        assert house.members[0].status.health is Health.SUSPECT
    assert isinstance(recalled[0], Resteered)


@pytest.mark.parametrize("idle", [True, False])
async def test_what_an_engine_says_of_itself_tells_that_it_lost_an_answer_of_any_length(idle: bool) -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        recalled = await unanswered(house, places, None, idle)
    assert [type(error) for error in recalled] == [Resteered] * idle


@pytest.mark.parametrize("stream", [True, False])
async def test_what_an_instance_holds_that_does_not_even_say_that_it_lives_is_taken_back(
    stream: bool,
) -> None:
    house = stuck_house()
    house.members[0].law.model = None
    status = house.members[0].status
    async with AsyncExitStack() as places:
        slot = await places.enter_async_context(house.gate.admit(house.request(stream=stream)))
        recalled: list[UpstreamError] = []
        slot.sent(Seconds(house.now), recalled.append)
        for signal in (Signal.REQUEST_FAILED, Signal.REQUEST_FAILED, Signal.PROBE_FAILED):
            assert recalled == [], "requests fail, but it lives"
            free(house)
            status.signal(signal, Seconds(house.now))
            Rescue(house.gate).tick(Seconds(house.now))
            await asyncio.sleep(0)
        for _ in range(3):  # as long as it takes to leave
            Rescue(house.gate).tick(Seconds(house.now))
            await asyncio.sleep(0)
    assert [type(error) for error in recalled] == [Resteered]


async def test_with_nobody_else_there_one_waits_for_a_dead_instance() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        recalled = await sent(house, places, 1)
        for _ in range(2):
            house.members[0].status.signal(Signal.PROBE_FAILED, Seconds(house.now))
        assert house.members[0].status.is_dead
        for later in (False, True):
            assert recalled == [[]]
            if later:
                free(house)
            Rescue(house.gate).tick(Seconds(house.now))
            await asyncio.sleep(0)
    assert len(recalled[0]) == 1, "somebody came"


async def test_nothing_is_taken_back_that_was_answered() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        slot = await places.enter_async_context(house.gate.admit(house.request()))
        recalled: list[UpstreamError] = []
        slot.sent(Seconds(house.now), recalled.append)
        slot.progress(1, Seconds(house.now))
        free(house)
        house.now += 5.0
        Rescue(house.gate).tick(Seconds(house.now))
        await asyncio.sleep(0)
        assert house.gate.unanswered == {}
    assert recalled == []


async def test_an_answer_that_comes_in_the_same_moment_stands() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        slot = await places.enter_async_context(house.gate.admit(house.request()))
        recalled: list[UpstreamError] = []
        slot.sent(Seconds(house.now), recalled.append)
        free(house)
        house.now += 5.0
        Rescue(house.gate).tick(Seconds(house.now))
        slot.progress(1, Seconds(house.now))  # before the round in which it would be taken back
        await asyncio.sleep(0)
    assert recalled == []


async def test_without_a_budget_everybody_stays() -> None:
    house = stuck_house()
    house.pool.retries = 0.0
    async with AsyncExitStack() as places:
        recalled = await sent(house, places, 2)
        free(house)
        house.pool.retries = 0.5
        house.now += 5.0
        Rescue(house.gate).tick(Seconds(house.now))
        await asyncio.sleep(0)
    assert recalled == [[], []]


@pytest.mark.parametrize("shed", [True, False])
async def test_only_a_pool_that_sheds_squashes(shed: bool) -> None:
    house = stuck_house(shed)
    async with AsyncExitStack() as places:
        recalled = await sent(house, places, 2)
        house.now += 5.0
        Rescue(house.gate).tick(Seconds(house.now))
        await asyncio.sleep(0)
    assert [[type(error) for error in errors] for errors in recalled] == [[Squashed] if shed else [], []]


async def test_what_left_is_forgotten() -> None:
    house = stuck_house()
    async with AsyncExitStack() as places:
        await sent(house, places, 3)
        assert len(house.gate.unanswered) == 3
    assert house.gate.unanswered == {}
    house = stuck_house()
    async with house.gate.admit(house.request()) as slot:
        slot.sent(Seconds(house.now), lambda _: None)
        slot.close(DOWN)
    assert house.gate.unanswered == {}
