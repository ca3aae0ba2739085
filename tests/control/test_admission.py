"""Admission: earliest deadline first, never more than the engines hold, spilling only upwards."""

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.admission import (
    AdmissionRules,
    PoolQueue,
    assign,
    backlog,
    layout,
    learned_slots,
    takes_prompts,
)
from control.state import Flight, Instance, Limits, LoadBook, PoolRules
from joulegate.domain import Batch, Objectives, RequestType, Size
from joulegate.units import MegaHertz, Seconds, Watts

NOW = Seconds(50.0)
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
RULES = AdmissionRules()
SIZES = st.sampled_from(list(Size))


@dataclass(frozen=True)
class FlatModel:
    """1 ms and 0.1 ms a prompt token at 1,000 MHz, in proportion to the clock."""

    clocks: tuple[MegaHertz, ...] = (MegaHertz(500), MegaHertz(1000))
    idle_watts: Watts = Watts(10.0)

    def iteration_time(self, batch: Batch, clock: MegaHertz) -> Seconds:
        return Seconds((1e-3 + 1e-4 * batch.prefill_tokens) * 1000 / clock)

    def watts(self, batch: Batch, clock: MegaHertz) -> Watts:
        return Watts(50.0 * clock / 1000)


def flight(n: int, waited: float = 0.0, ttft: float = 0.4, tokens: int = 100, **changes: object) -> Flight:
    made = Flight(
        id=str(n),
        type=RequestType(Size.S, Size.S),
        input_tokens=tokens,
        uncached_tokens=tokens,
        output_q50=50.0,
        output_q90=90.0,
        arrived=Seconds(NOW - waited),
        ttft=Seconds(ttft),
        tpot=Seconds(0.1),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def engine(name: str, pool: str = "p", slots: int = 4, window: float = 1e9) -> Instance:
    made = Instance(name, pool, LoadBook(), Limits(), FlatModel(), slots=slots)
    made.prompt_window = window
    return made


def pool(name: str = "p", types: frozenset[RequestType] | None = None, shed: bool = False) -> PoolQueue:
    every = frozenset(RequestType(i, o) for i in Size for o in Size)
    return PoolQueue(PoolRules(name, AIMS, every if types is None else types, shed))


def rng() -> random.Random:
    return random.Random(3)


waits = st.lists(st.tuples(st.floats(0.0, 0.3), st.floats(0.5, 3.0)), min_size=1, max_size=30)


@settings(deadline=None)
@given(waits, st.integers(1, 10))
def test_grants_come_in_order_of_deadline(requests: list[tuple[float, float]], slots: int) -> None:
    queue = pool()
    for n, (waited, ttft) in enumerate(requests):
        queue.push(flight(n, waited, ttft), RULES)
    outcome = assign(layout({"p": queue}, [engine("a", slots=slots)]), RULES, rng().randrange, NOW)
    granted = [g.flight.deadline for g in outcome.grants]
    left = [f.deadline for f in queue.every(1, 0)]
    assert len(granted) == min(slots, len(requests))
    within = RULES.fairness
    assert all(earlier <= later + within for earlier in granted for later in left)
    assert all(a <= b + within for a, b in pairwise(granted))


@settings(deadline=None)
@given(waits, st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_grants_never_exceed_slots_and_nobody_is_lost_or_doubled(
    requests: list[tuple[float, float]], slots: list[int]
) -> None:
    queue = pool()
    flights = [flight(n, waited, ttft) for n, (waited, ttft) in enumerate(requests)]
    for one in flights:
        queue.push(one, RULES)
    engines = [engine(f"e{n}", slots=s) for n, s in enumerate(slots)]
    outcome = assign(layout({"p": queue}, engines), RULES, rng().randrange, NOW)
    assert all(e.book.running <= e.slots for e in engines)
    places = [g.flight.id for g in outcome.grants] + [f.id for f in queue.every(1, 0)]
    assert sorted(places) == sorted(f.id for f in flights)
    assert queue.tokens == sum(f.uncached_tokens for f in queue.every(1, 0))


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_requests_spill_only_to_pools_at_least_as_large(
    i: Size, o: Size, other_i: Size, other_o: Size
) -> None:
    home = pool("home", frozenset({RequestType(i, o)}))
    other = pool("other", frozenset({RequestType(other_i, other_o)}))
    home.push(flight(1), RULES)
    engines = [engine("other", "other")]
    outcome = assign(layout({"home": home, "other": other}, engines), RULES, rng().randrange, NOW)
    assert bool(outcome.grants) == RequestType(i, o).fits_in(RequestType(other_i, other_o))


def test_a_pool_with_its_own_queue_takes_nobody_else() -> None:
    home = pool("home", frozenset({RequestType(Size.S, Size.S)}))
    busy = pool("busy", frozenset({RequestType(Size.L, Size.L)}))
    home.push(flight(1), RULES)
    busy.push(flight(2), RULES)
    outcome = assign(
        layout({"home": home, "busy": busy}, [engine("b", "busy", slots=1)]), RULES, rng().randrange, NOW
    )
    assert [g.flight.id for g in outcome.grants] == ["2"]


def test_a_short_prompt_passes_a_long_one_that_may_wait() -> None:
    queue = pool()
    queue.push(flight(1, waited=0.1, ttft=2.0, tokens=4000), RULES)
    queue.push(flight(2, ttft=0.25), RULES)
    outcome = assign(layout({"p": queue}, [engine("a", window=50)]), RULES, rng().randrange, NOW)
    assert [g.flight.id for g in outcome.grants] == ["2"]


def test_an_engine_gets_no_prompts_beyond_its_window_until_it_has_worked_some_off() -> None:
    one = engine("a", window=50)
    one.book.send(flight(1, tokens=500), NOW)
    assert not takes_prompts(one, NOW)
    one.prompt_rate = 10_000.0
    assert takes_prompts(one, Seconds(NOW + 0.046))


def test_a_request_out_of_reach_makes_nobody_late_but_is_still_served() -> None:
    queue = pool()
    queue.push(flight(1, waited=0.395, ttft=0.4, tokens=2000), RULES)
    queue.push(flight(2, waited=0.3, ttft=0.4), RULES)
    outcome = assign(layout({"p": queue}, [engine("a", window=50)]), RULES, rng().randrange, NOW)
    assert [g.flight.id for g in outcome.grants] == ["2"]
    assert [(f.id, f.lost) for f in queue.every(1, 0)] == [("1", True)]


def test_a_pool_that_sheds_refuses_what_is_out_of_reach_and_says_when_to_come_back() -> None:
    queue = pool(shed=True)
    queue.push(flight(1, waited=0.03, ttft=0.02), RULES)
    outcome = assign(layout({"p": queue}, [engine("a")]), RULES, rng().randrange, NOW)
    assert not outcome.grants
    assert [(r.flight.id, r.retry_after >= 1.0) for r in outcome.rejects] == [("1", True)]


def test_who_waited_long_is_not_refused_any_more_but_goes_after_the_others() -> None:
    queue = pool(shed=True)
    queue.push(flight(1, waited=0.4, ttft=0.4), RULES)
    queue.push(flight(2, waited=0.3, ttft=0.4), RULES)
    outcome = assign(layout({"p": queue}, [engine("a", slots=1)]), RULES, rng().randrange, NOW)
    assert not outcome.rejects
    assert [g.flight.id for g in outcome.grants] == ["2"]
    assert [(f.id, f.lost) for f in queue.every(1, 0)] == [("1", True)]


def test_the_queue_of_a_pool_that_sheds_is_as_long_as_it_moves_fast() -> None:
    queue = pool(shed=True)
    for n in range(2):
        queue.push(flight(n, ttft=0.4), RULES)
    queue.interval = 0.05
    assert queue.refusal(flight(2, ttft=0.4), RULES) == ""
    queue.interval = 0.2
    assert queue.refusal(flight(2, ttft=0.4), RULES) == "its TTFT objective is out of reach"
    assert queue.refusal(flight(3, ttft=0.1), RULES) == "", "the first to go may always hope"


def test_retry_after_grows_with_the_backlog() -> None:
    queue, engines = pool(), [engine("a")]
    for n in range(1000):
        queue.push(flight(n, tokens=1000), RULES)
    assert backlog(queue, engines) == pytest.approx(100.5, rel=0.01)


def test_without_a_free_slot_everybody_waits() -> None:
    queue = pool()
    queue.push(flight(1), RULES)
    assert not assign(layout({"p": queue}, [engine("a", slots=0)]), RULES, rng().randrange, NOW).grants
    assert len(queue) == 1


def test_a_cancelled_wait_leaves_the_queue() -> None:
    queue, one = pool(), flight(1)
    queue.push(one, RULES)
    assert queue.remove(one)
    assert not queue.remove(one)
    assert (len(queue), queue.tokens) == (0, 0)


def test_equal_deadlines_go_to_the_tenant_with_less_work_in_flight() -> None:
    queue = pool()
    queue.push(flight(1, tenant="busy"), RULES)
    engines = [engine("a", slots=1)]
    engines[0].book.join(queue.tenants)
    assign(layout({"p": queue}, engines), RULES, rng().randrange, NOW)
    queue.push(flight(2, tenant="busy"), RULES)
    queue.push(flight(3, tenant="quiet"), RULES)
    engines[0].slots = 2
    outcome = assign(layout({"p": queue}, engines), RULES, rng().randrange, NOW)
    assert [g.flight.id for g in outcome.grants] == ["3"]


def test_a_full_queue_refuses_at_once() -> None:
    queue, rules = pool(), AdmissionRules(max_queued=1)
    assert not queue.refusal(flight(1), rules)
    queue.push(flight(1), rules)
    why = queue.refusal(flight(2), rules)
    assert why == "1 requests are queued"
    assert backlog(queue, [engine("a")]) >= 1.0


@pytest.mark.parametrize(
    ("slots", "running", "waiting", "known", "expected"),
    [
        pytest.param(16, 40, 3, None, 40, id="most running while some wait"),
        pytest.param(16, 16, 0, None, 20, id="full without a wait: it takes more"),
        pytest.param(16, 3, 0, None, 16, id="nothing learned"),
        pytest.param(16, 40, 3, 64, 64, id="known"),
    ],
)
def test_slots_are_learned_from_the_engines_gauges(
    slots: int, running: int, waiting: int, known: int | None, expected: int
) -> None:
    assert learned_slots(slots, running, waiting, known) == expected
