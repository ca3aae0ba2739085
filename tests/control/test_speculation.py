"""Steps of several tokens (speculative decoding), as every law must see them: TPOT, ends, floor and twin."""

import json
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.floor import Demand, in_steps, settle
from control.governor import GovernorRules, Memory, Outlook, choose
from control.projection import drain
from control.state import Instance, Limits, LoadBook
from control.twin import Twin, Twinned
from joulegate.domain import Batch, Objectives
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds
from predictor.physics import PhysicsModel
from tests.control.test_laws import booked, flight

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
MODEL = PhysicsModel(parse_profile(json.loads((PROFILES / "h100_llama-3.1-8b_tp1.json").read_text())))
MAX = MODEL.clocks[-1]
TTFT = (Seconds(0.25), Seconds(0.4), Seconds(2.0))
NOW = Seconds(100.0)
factors = st.floats(1.0, 6.0)
rows = st.lists(st.tuples(st.integers(1, 3000), st.integers(2, 800)), min_size=1, max_size=20)


def engine(book: LoadBook, per_step: float) -> Instance:
    limits = Limits(256, 2048, 440_000)
    return Instance(
        "i", "p", book, limits, MODEL, slots=256, clock=MAX, telemetry_at=NOW, tokens_per_step=per_step
    )


@settings(deadline=None)
@given(rows, factors)
def test_a_drain_ends_each_answer_with_its_tokens_and_reads_contexts_that_grow_with_them(
    asked: list[tuple[int, int]], per_step: float
) -> None:
    flights = [flight(n, tokens, float(output)) for n, (tokens, output) in enumerate(asked)]
    stretches = drain(booked(*flights), len(flights), per_step)
    at = 0.0
    for stretch, ended in zip(stretches, sorted(flights, key=lambda one: one.remaining), strict=True):
        before, at = at, at + stretch.steps
        assert at * per_step == pytest.approx(ended.remaining)
        going = [one for one in flights if one.remaining >= ended.remaining]
        middle = sum(one.input_tokens + 1.0 + 0.5 * (before + at) * per_step for one in going)
        if stretch.steps > 1e-9:
            assert stretch.context == pytest.approx(middle, rel=1e-6)


@settings(deadline=None)
@given(st.integers(1, 150), factors, st.floats(0.004, 0.03), st.sampled_from([None, 2.0, 20.0]))
def test_a_step_of_several_tokens_may_take_as_long_as_all_of_them(
    batch: int, per_step: float, tpot: float, e2e: float | None
) -> None:
    """It gets the clock of an engine whose sequences have that many fewer tokens to come, each due later."""
    many = booked(*(flight(n, 1000, 200.0, 99.0, e2e=e2e) for n in range(batch)))
    # as many steps: a token is out already; contexts grow less, which no TPOT sees and an end hardly
    few = booked(*(flight(n, 1000, 1.0 + 199.0 / per_step, 99.0, e2e=e2e) for n in range(batch)))
    clocks = []
    for book, each, objective in ((many, per_step, tpot), (few, 1.0, per_step * tpot)):
        aims = Objectives(TTFT, Seconds(objective), None if e2e is None else Seconds(e2e), None)
        outlook = Outlook(floor=MODEL.clocks[0])
        decision, _ = choose(engine(book, each), outlook, aims, GovernorRules(), Memory(), NOW)
        assert decision.clock is not None
        assert decision.tpot is not None
        assert decision.tpot == pytest.approx(MODEL.iteration_time(_now(book), decision.clock) / each)
        clocks.append(MODEL.clocks.index(decision.clock))
    assert clocks[0] >= clocks[1] if e2e is not None else clocks[0] == clocks[1]


def _now(book: LoadBook) -> Batch:
    return Batch(book.decoding, book.context)


@settings(deadline=None)
@given(st.floats(0.1, 8.0), factors, st.sampled_from(MODEL.clocks[::10]))
def test_a_load_settles_where_it_makes_as_many_tokens_as_are_asked_for(
    rate: float, per_step: float, clock: MegaHertz
) -> None:
    load = Demand(rate, 600.0, 600.0, 240.0)
    plain, fewer = (settle(MODEL, in_steps(load, each), clock, 2048) for each in (1.0, per_step))
    assert in_steps(load, 1.0) == load
    assert fewer.in_system <= plain.in_system * (1.0 + 1e-9)
    if fewer.in_system < 100.0:  # the same work asked for in so many fewer steps, contexts as long
        given = Demand(rate, 600.0, 720.0 - 120.0 / per_step, 240.0 / per_step)
        assert settle(MODEL, given, clock, 2048).watts == pytest.approx(fewer.watts)


@settings(deadline=None)
@given(st.integers(1, 600), factors)
def test_the_twin_of_one_request_takes_its_prefill_and_as_few_steps(output: int, per_step: float) -> None:
    twin, one = Twin(MODEL, 2048, 256), flight(1, 1000)
    twin.per_step, one.tokens_out = per_step, float(output)
    assert twin.add(one) == []
    (ended,) = twin.add(flight(2, arrived=1000.0))
    steps = ceil((output - 1) / per_step)
    grown = (output - 1) / steps if steps else 0.0
    decode = sum(MODEL.iteration_time(Batch(1, 1001.0 + n * grown), MAX) for n in range(steps))
    assert ended.e2e - ended.ttft == pytest.approx(decode, rel=1e-3, abs=1e-9)


@settings(deadline=None)
@given(rows, factors)
def test_the_twin_forgets_nobody_and_is_empty_after_them(
    asked: list[tuple[int, int]], per_step: float
) -> None:
    twin, ended = Twin(MODEL, 2048, 256), list[Twinned]()
    twin.per_step = per_step
    for n, (tokens, output) in enumerate(asked):
        one = flight(n, tokens, arrived=0.1 * n)
        one.tokens_out = float(output)
        ended += twin.add(one)
    late = flight(9998, arrived=5_000.0)
    late.tokens_out = 101.0
    ended += twin.add(late)
    assert len(ended) == len(asked)
    (last,) = twin.add(flight(9999, arrived=9_000.0))
    fresh = Twin(MODEL, 2048, 256)
    fresh.per_step = per_step
    assert fresh.add(late) == []
    assert last.e2e == pytest.approx(fresh.add(flight(9999, arrived=9_000.0))[0].e2e)
