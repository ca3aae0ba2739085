"""What the laws of a fleet learn from: the first price of delay, and the order in which requests are told."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from control.admission import MANY, AdmissionRules
from control.floor import Demand, cheapest, settle
from control.governor import GovernorRules
from control.prices import PriceRules
from control.state import NO_ROOM, Flight, Instance, Limits, LoadBook, PoolRules, Room
from control.steering import FEW, SPARED, Steering
from control.twin import Twin, Twinned
from joulegate.domain import Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds
from predictor.physics import PhysicsModel

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)
CHUNK = 2048


def a100(fixed: float) -> PhysicsModel:
    """`fixed`: the share of its power that does not fall with the clock."""
    known = parse_profile(json.loads(PROFILE.read_text()))
    return PhysicsModel(replace(known, power=replace(known.power, s_fixed_share=fixed)))


def laws(model: PhysicsModel, aims: Objectives = AIMS) -> tuple[Steering, Instance]:
    limits = Limits(256, CHUNK, 157_000)
    one = Instance("a", "all", LoadBook(), limits, model, slots=256, clock=model.clocks[-1])
    rules = [PoolRules("all", aims, EVERY)]
    return Steering(rules, [one], AdmissionRules(), GovernorRules(), random.Random(1).randrange), one


def flight(n: int, arrived: float, tokens: int = 1000, output: float = 200.0) -> Flight:
    kind, times = RequestType(Size.M, Size.M), (Seconds(arrived), Seconds(0.4), Seconds(0.1))
    return Flight(str(n), kind, tokens, tokens, output, output, *times)


@pytest.mark.parametrize("fixed", [0.3, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_a_price_of_delay_can_rise_far_enough_whatever_slow_clocks_save_at_first(
    fixed: float, rate: float
) -> None:
    model = a100(fixed)
    steering, one = laws(model)
    for n in range(round(20 * rate)):
        now = Seconds(n / rate)
        one.telemetry_at = now
        steering.arrive(flight(n, now), "all", now)
        steering.tick(one, now)
    start = steering.pools["all"].prices.start
    assert start is not None
    demand = Demand(2.0, 1000.0, 1000.0, 200.0)
    slowest = cheapest(model, demand, CHUNK, start * PriceRules().highest)
    longer = settle(model, demand, slowest, CHUNK).in_system
    assert longer <= 1.1 * settle(model, demand, model.clocks[-1], CHUNK).in_system


class Told(Twin):
    """Remembers whom it was told of."""

    heard: list[str]

    def add(self, flight: Flight) -> list[Twinned]:
        self.heard.append(flight.id)
        return super().add(flight)


def test_of_requests_that_came_together_who_ended_first_is_told_first() -> None:
    model = a100(0.3)
    steering, one = laws(model)
    twin = steering.steered["a"].twin = Told(model, CHUNK, 256)
    twin.heard = []
    together = [flight(n, 1.0) for n in range(30)]
    for each in together:
        one.book.send(each, Seconds(1.0))
        one.book.progress(each, 1.0, Seconds(2.0))
    ended = random.Random(7).sample(together, len(together))
    for each in ended:
        one.book.close(each)
    one.telemetry_at = Seconds(9.0)
    steering.tick(one, Seconds(9.0))
    assert twin.heard == [each.id for each in ended]


@pytest.mark.parametrize(("e2e", "told"), [(100.0, ["long", "short"]), (10.0, ["short"])])
def test_who_may_miss_an_end_to_end_objective_has_ended_before_later_ones_are_learned_from(
    e2e: float, told: list[str]
) -> None:
    model = a100(0.3)
    steering, one = laws(model, replace(AIMS, e2e=Seconds(e2e)))
    twin = steering.steered["a"].twin = Told(model, CHUNK, 256)
    twin.heard = []
    long, short = replace(flight(1, 1.0), id="long"), replace(flight(2, 2.0), id="short")
    for each in (long, short):
        one.book.send(each, each.arrived)
        one.book.progress(each, 1.0, Seconds(3.0))
    one.book.close(short)
    one.telemetry_at = Seconds(90.0)
    steering.tick(one, Seconds(90.0))
    one.book.close(long)
    one.telemetry_at = Seconds(95.0)
    steering.tick(one, Seconds(95.0))
    assert twin.heard == told


def test_the_twin_follows_what_is_learned_of_the_engine() -> None:
    steering, one = laws(a100(0.3))
    one.telemetry_at = Seconds(1.0)
    one.limits, one.slots = Limits(None, CHUNK, None), 16
    steering.tick(one, Seconds(1.0))
    twin = steering.steered["a"].twin
    assert twin is not None
    assert (twin.slots, twin.capacity) == (16, float("inf"))
    one.limits, one.slots, one.model = Limits(None, CHUNK, 100_000), 40, a100(0.6)
    one.telemetry_at = Seconds(3.0)
    steering.tick(one, Seconds(3.0))
    assert twin is steering.steered["a"].twin
    assert twin.model is one.model
    assert twin.slots == 40
    assert 90_000 <= twin.capacity <= 100_000


def test_prompts_are_read_at_maximum_clock_while_more_requests_missed_than_may() -> None:
    """Whoever comes while so many are read in one iteration would be late at any clock."""
    model = a100(0.3)
    steering, one = laws(model)
    one.limits = Limits(256, 8192, 157_000)
    for n in range(40):
        now = Seconds(0.5 * n)
        one.telemetry_at = now
        steering.arrive(flight(n, now, tokens=40), "all", now)
    for each in list(one.book.flights.values()):
        one.book.close(each)
    long = replace(flight(99, 20.0, tokens=8000), ttft=Seconds(20.0))
    steering.arrive(long, "all", Seconds(20.0))
    calm = steering.tick(one, Seconds(20.0))
    for n in range(20):
        missed = flight(n, 0.0)
        missed.first_token, missed.last_token, missed.tokens_out = Seconds(5.0), Seconds(9.0), 200.0
        steering.pools["all"].prices.observe(Twinned(missed, Seconds(0.1), Seconds(4.0)))
    indebted = steering.tick(one, Seconds(20.1))
    assert calm.clock is not None
    assert calm.clock < model.clocks[-1]
    assert indebted.clock == model.clocks[-1]


@pytest.mark.parametrize("count", [65, 200])
def test_of_many_instances_one_that_takes_prompts_and_has_room_gets_the_request(count: int) -> None:
    model = a100(0.3)
    room = Room(50, 1e6, Seconds(0.0))
    many = [
        Instance(f"i{n}", "all", LoadBook(), Limits(256, CHUNK), model, slots=256, at_clock=room, at_max=room)
        for n in range(count)
    ]
    rules = [PoolRules("all", AIMS, EVERY)]
    steering = Steering(rules, many, AdmissionRules(), GovernorRules(), random.Random(1).randrange)
    for each in many[1::2]:
        each.prompt_window = 0.0  # it holds as many prompts as it takes
    for each in many[::4]:
        each.at_clock = each.at_max = NO_ROOM
    able = many[2::4]
    for n in range(2 * len(able)):
        (grant,) = steering.arrive(flight(n, 1.0), "all", Seconds(1.0)).grants
        assert grant.instance in able
    for each in many:
        each.prompt_window = 0.0
    assert not steering.arrive(flight(count, 1.0), "all", Seconds(1.0)).grants
    assert steering.queued == 1


@pytest.mark.parametrize(
    ("tokens", "count", "each", "share", "apart"),
    [
        pytest.param(3000, SPARED, FEW - 1, 1.0, True, id="long prompts, few sequences"),
        pytest.param(300, SPARED, FEW - 1, 1.0, False, id="no prompt fills an iteration"),
        pytest.param(3000, SPARED, FEW, 1.0, False, id="sequences everywhere"),
        pytest.param(3000, SPARED - 1, FEW - 1, 1.0, False, id="too few instances to leave some to prompts"),
        pytest.param(3000, MANY + 1, FEW - 1, 1.0, False, id="more instances than are looked at"),
        pytest.param(3000, SPARED, FEW - 1, 0.5, False, id="several gateways would all choose the same"),
    ],
)
def test_long_answers_are_kept_from_long_prompts_where_that_spares_somebody(
    tokens: int, count: int, each: int, share: float, apart: bool
) -> None:
    model, now = a100(0.3), Seconds(20.0)
    engines = [
        Instance(str(n), "all", LoadBook(), Limits(256, CHUNK), model, slots=256, clock=model.clocks[-1])
        for n in range(count)
    ]
    rules, rng = [PoolRules("all", AIMS, EVERY)], random.Random(1).randrange
    steering = Steering(rules, engines, AdmissionRules(), GovernorRules(), rng, share)
    for n in range(20 * count):
        steering.arrive(flight(n, n / count, tokens), "all", Seconds(n / count))
    for engine in engines:
        for held in list(engine.book.flights.values()):
            engine.book.close(held)
        for n in range(each):
            engine.book.send(flight(10_000 + n, now, 100), now)
        engine.telemetry_at = now
    steering.tick(engines[0], now)
    assert steering.pools["all"].queue.apart == apart
