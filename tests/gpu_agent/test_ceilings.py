"""Up at once, down slowly, never outside what the operator allows."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.ceilings import (
    Boost,
    Ceiling,
    Limits,
    Plan,
    boosted,
    due,
    failed,
    level,
    limits_for,
    snap,
    wanted,
    written,
)
from joulegate.units import MegaHertz, Seconds

CLOCKS = tuple(MegaHertz(c) for c in range(210, 1981, 15))
LIMITS = limits_for(CLOCKS, 600, 1800, None, Seconds(1.0))
clocks = st.integers(1, 10_000).map(MegaHertz)
targets = st.none() | clocks


def at(seconds: float) -> Seconds:
    return Seconds(seconds)


@pytest.mark.parametrize(
    ("asked", "given_"),
    [(1, 210), (210, 210), (211, 225), (1205, 1215), (1980, 1980), (9999, 1980)],
)
def test_a_clock_is_snapped_up(asked: int, given_: int) -> None:
    assert snap(CLOCKS, asked) == given_


@pytest.mark.parametrize(
    ("plan", "limits", "ceiling"),
    [
        pytest.param(Plan(), LIMITS, None, id="nothing wanted: the driver's default"),
        pytest.param(Plan(target=MegaHertz(900)), LIMITS, 900, id="the lease's target"),
        pytest.param(Plan(target=MegaHertz(300)), LIMITS, 600, id="never below the operator's least"),
        pytest.param(Plan(target=MegaHertz(1980)), LIMITS, 1800, id="never above the operator's most"),
        pytest.param(
            Plan(MegaHertz(900), (Boost(MegaHertz(1500), at(11.0)),)),
            LIMITS,
            1500,
            id="a boost lifts the target",
        ),
        pytest.param(
            Plan(MegaHertz(900), (Boost(MegaHertz(750), at(11.0)),)),
            LIMITS,
            900,
            id="a boost never lowers it",
        ),
        pytest.param(
            Plan(MegaHertz(900), (Boost(MegaHertz(1500), at(10.0)),)), LIMITS, 900, id="a boost ends"
        ),
        pytest.param(
            Plan(MegaHertz(900), (Boost(MegaHertz(1980), at(11.0)),)),
            LIMITS,
            1800,
            id="a boost stays in the clamps",
        ),
    ],
)
def test_wanted(plan: Plan, limits: Limits, ceiling: Ceiling) -> None:
    assert wanted(plan, limits, at(10.0)) == ceiling


def test_a_site_lock_is_where_clocks_return_to_and_what_nothing_exceeds() -> None:
    limits = limits_for(CLOCKS, None, None, 1500, Seconds(1.0))
    assert wanted(Plan(), limits, at(0.0)) == 1500
    assert wanted(Plan(target=MegaHertz(1900)), limits, at(0.0)) == 1500
    assert due(replace(Plan(applied=MegaHertz(900)), unsure=True), limits, at(0.0), may_lower=True) == (1500,)


def test_going_down_waits_for_the_dwell_and_going_up_does_not() -> None:
    plan = written(Plan(target=MegaHertz(900)), MegaHertz(900), at(10.0))
    lower, higher = replace(plan, target=MegaHertz(750)), replace(plan, target=MegaHertz(1200))
    assert due(lower, LIMITS, at(10.9), may_lower=True) is None
    assert due(lower, LIMITS, at(11.0), may_lower=True) == (750,)
    assert due(lower, LIMITS, at(11.0), may_lower=False) is None
    assert due(higher, LIMITS, at(10.0), may_lower=False) == (1200,)
    assert due(replace(plan, target=None), LIMITS, at(10.0), may_lower=False) == (None,)


def test_what_is_there_already_is_not_written_again() -> None:
    plan = written(Plan(target=MegaHertz(900)), MegaHertz(900), at(10.0))
    assert due(plan, LIMITS, at(100.0), may_lower=True) is None
    assert due(Plan(), LIMITS, at(100.0), may_lower=True) is None


def test_after_a_failed_write_only_the_way_up_is_left() -> None:
    plan = replace(failed(Plan(target=MegaHertz(900))), target=MegaHertz(600))
    assert due(plan, LIMITS, at(1000.0), may_lower=True) == (None,)


@given(st.lists(st.tuples(clocks, st.floats(0.0, 10.0)), max_size=60))
def test_boosts_are_bounded_and_the_highest_survive(boosts: list[tuple[MegaHertz, float]]) -> None:
    plan = Plan(target=MegaHertz(600))
    for floor, until in boosts:
        plan = boosted(plan, floor, at(until + 1.0), at(0.0))
    assert len(plan.boosts) <= 16
    if boosts:
        assert max(b.floor for b in plan.boosts) == max(floor for floor, _ in boosts)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 2.0), targets, st.booleans(), st.none() | clocks), min_size=1, max_size=80
    ),
    st.none() | st.integers(210, 1980),
)
def test_in_any_history_clocks_stay_in_bounds_and_fall_at_most_once_a_dwell(
    steps: list[tuple[float, Ceiling, bool, MegaHertz | None]], site_lock: int | None
) -> None:
    limits = limits_for(CLOCKS, 600, 1800, site_lock, Seconds(1.0))
    plan, now, fell = Plan(applied=limits.site_lock), 0.0, -inf
    for wait, target, may_lower, boost in steps:
        now += wait
        plan = replace(plan, target=target)
        if boost is not None:
            plan = boosted(plan, boost, at(now + 1.0), at(now))
        write = due(plan, limits, at(now), may_lower)
        if write is None:
            # Whatever was not written was not a raise.
            assert level(wanted(plan, limits, at(now))) <= level(plan.applied)
            continue
        (ceiling,) = write
        if level(ceiling) < level(plan.applied):
            assert may_lower
            assert now - fell >= 1.0
            fell = now
        plan = written(plan, ceiling, at(now))
        assert ceiling == limits.site_lock or (
            ceiling is not None and limits.lowest <= ceiling <= limits.highest
        )
        assert ceiling is None or ceiling in CLOCKS
