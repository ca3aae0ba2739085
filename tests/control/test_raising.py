"""Who waits for a higher clock before an engine reads its prompt, and how long."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from control.admission import AdmissionRules, PoolQueue, layout, place
from control.governor import GovernorRules
from control.raising import GAIN, PATIENCE, waits_for_clock
from control.state import Flight, Instance, Limits, LoadBook, PoolRules, Room
from control.steering import Steering
from joulegate.domain import Batch, Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds
from predictor.physics import PhysicsModel

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"
MODEL = PhysicsModel(parse_profile(json.loads(PROFILE.read_text())))
LOW, MAX = MODEL.clocks[0], MODEL.clocks[-1]
SWITCH = Seconds(0.025)
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)


def flight(tokens: int = 1000, arrived: float = 10.0, ttft: float = 0.4, name: str = "f") -> Flight:
    return Flight(
        id=name,
        type=RequestType(Size.M, Size.M),
        input_tokens=tokens,
        uncached_tokens=tokens,
        output_q50=50.0,
        output_q90=50.0,
        arrived=Seconds(arrived),
        ttft=Seconds(ttft),
        tpot=Seconds(0.1),
    )


def idle(clock: MegaHertz | None = LOW, room: float = 100.0, pool: str = "all") -> Instance:
    """Decided on a second before the flight comes, with room for so many prompt tokens."""
    return Instance(
        name="i0",
        pool=pool,
        book=LoadBook(),
        limits=Limits(max_num_seqs=256, kv_capacity=150_000),
        model=MODEL,
        slots=256,
        clock=clock,
        telemetry_at=Seconds(10.0),
        rise_takes=SWITCH,
        at_clock=Room(8, room, Seconds(9.0)),
    )


def waits(one: Flight, instance: Instance, now: float) -> bool:
    return waits_for_clock(one, float(one.uncached_tokens), instance, Seconds(now))


def test_a_long_prompt_for_a_slow_idle_engine_waits_until_it_has_been_decided_on() -> None:
    instance = idle()
    assert waits(flight(), instance, 10.0)
    instance.at_clock = Room(8, 100.0, Seconds(10.0))  # decided, and not raised
    assert not waits(flight(), instance, 10.0)


def test_after_a_raise_it_waits_until_the_clock_is_in_force() -> None:
    instance = idle(clock=MAX)
    instance.raised_from, instance.raised_at = LOW, Seconds(10.001)
    assert waits(flight(), instance, 10.02)
    assert not waits(flight(), instance, 10.001 + SWITCH)


def test_it_waits_no_longer_than_patience_if_nobody_raises() -> None:
    assert not waits(flight(), idle(), 10.0 + SWITCH + PATIENCE + 0.001)


@pytest.mark.parametrize(
    ("one", "instance"),
    [
        pytest.param(flight(), replace(idle(), model=None), id="no model"),
        pytest.param(flight(), idle(clock=None), id="no ceiling"),
        pytest.param(flight(), idle(clock=MAX), id="maximum clock already"),
        pytest.param(flight(), replace(idle(), rise_takes=None), id="never decided on"),
        pytest.param(flight(), idle(room=5_000.0), id="the clock in force is enough"),
        pytest.param(flight(100), idle(), id="read in no time at any clock"),
        pytest.param(flight(), replace(idle(), rise_takes=Seconds(0.5)), id="the switch takes longer"),
        pytest.param(flight(ttft=3600.0), idle(), id="no TTFT objective to speak of"),
    ],
)
def test_nobody_waits_for_nothing(one: Flight, instance: Instance) -> None:
    assert not waits(one, instance, 10.0)


def test_nobody_waits_behind_a_prompt_that_is_being_read() -> None:
    instance = idle()
    instance.book.send(flight(name="other"), Seconds(9.9))
    assert not waits(flight(), instance, 10.0)


def test_waiting_pays_by_what_reading_takes_at_the_clock_in_force_and_at_the_highest() -> None:
    for tokens in range(50, 2050, 50):
        batch = Batch(0, 0.0, tokens, 0.5 * tokens * tokens)
        gain = MODEL.iteration_time(batch, LOW) - MODEL.iteration_time(batch, MAX)
        assert waits(flight(tokens), idle(), 10.0) == (tokens > 100 and gain > GAIN * SWITCH)


@pytest.mark.parametrize(
    ("slots", "clock", "now", "where"),
    [
        pytest.param(256, MAX, 10.0, None, id="at home it waits, though another is fast"),
        pytest.param(256, MAX, 10.0 + SWITCH + PATIENCE + 0.001, "small", id="and then goes there"),
        pytest.param(0, LOW, 10.0, "large", id="elsewhere nobody raises a clock for it: it goes at once"),
    ],
)
def test_who_waits_for_a_clock_at_home_does_not_go_to_a_larger_pool(
    slots: int, clock: MegaHertz, now: float, where: str | None
) -> None:
    small = PoolRules("small", AIMS, frozenset({RequestType(Size.M, Size.M)}))
    large = PoolRules("large", AIMS, frozenset({RequestType(Size.L, Size.L)}))
    home, other = replace(idle(pool="small"), slots=slots), replace(idle(clock, pool="large"), name="i1")
    queues = {rules.name: PoolQueue(rules) for rules in (small, large)}
    tiers = layout(queues, [home, other])["small"]
    grant = place(flight(), tiers, lambda n: 0, Seconds(now), share=1.0)
    assert (grant.instance.pool if grant is not None else None) == where


def test_steering_queues_it_raises_and_lets_it_in_when_the_clock_is_in_force() -> None:
    instance = replace(idle(), rise_takes=None, at_clock=Room(0, 0.0, Seconds(0.0)))
    rules = PoolRules("all", AIMS, EVERY)
    governor = GovernorRules(switch=SWITCH)
    steering = Steering((rules,), (instance,), AdmissionRules(), governor, lambda n: 0)
    for n in range(60):  # some load, so that it has a floor
        outcome = steering.arrive(flight(100, n / 5.0, name=f"s{n}"), "all", Seconds(n / 5.0))
        for grant in outcome.grants:
            instance.book.progress(grant.flight, 50.0, Seconds(n / 5.0 + 0.05))
            instance.book.close(grant.flight)
        instance.telemetry_at = Seconds(n / 5.0)
        instance.clock = steering.tick(instance, Seconds(n / 5.0)).clock
    assert instance.clock is not None
    assert instance.clock < MAX
    long, now = flight(2000, 12.0, 2.0, name="long"), Seconds(12.0)
    assert steering.arrive(long, "all", now).grants == ()
    assert steering.exceeded(instance)
    before = instance.clock
    instance.clock = steering.tick(instance, now).clock
    assert instance.clock is not None
    assert instance.clock > before
    assert steering.assign(Seconds(now + 0.5 * SWITCH)).grants == ()
    assert [grant.flight.id for grant in steering.assign(Seconds(now + SWITCH)).grants] == ["long"]
