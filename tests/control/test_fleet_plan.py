"""The fleet program: HiGHS serves all within the GPUs; greedy is close and never below."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.fleet_plan import Configuration, Fleet, Plan, greedy, pareto, total_watts
from control.fleet_solver import Solved, solve

PLENTY = Fleet(10_000)


def exactly(demands: dict[str, float], options: dict[str, list[Configuration]], fleet: Fleet) -> Solved:
    return solve(demands, options, fleet, gap=0.001, limit=20.0)


def configurations(scale: float = 1.0) -> list[Configuration]:
    """Watts rise with load, convex; a larger instance carries more than its share."""
    return [
        Configuration(f"tp{tp}", tp, scale * load * tp**1.1, tp * (80.0 + 300.0 * load**2))
        for tp in (2, 4, 8)
        for load in np.linspace(0.2, 1.0, 10).tolist()
    ]


rates = st.dictionaries(st.sampled_from(["SS", "MM", "LL"]), st.floats(0.1, 60.0), min_size=1)


@settings(deadline=None, max_examples=25)
@given(rates)
def test_the_program_serves_every_type_and_greedy_is_never_better_and_not_much_worse(
    demands: dict[str, float],
) -> None:
    options = {"SS": configurations(3.0), "MM": configurations(1.0), "LL": configurations(0.4)}
    answer, quick = exactly(demands, options, PLENTY), greedy(demands, options, PLENTY)
    best = answer.plan
    assert quick is not None
    assert best is not None
    for plan in (best, quick):
        assert all(plan.load(name) >= rate * (1.0 - 1e-6) for name, rate in demands.items())
    largest = sum(max(c.watts for c in options[name]) for name in demands)
    assert best.watts <= quick.watts + 1e-6
    assert answer.gap is not None
    assert quick.watts <= best.watts + largest


def test_too_few_gpus_are_seen_by_both() -> None:
    demands, options = {"MM": 500.0}, {"MM": configurations()}
    assert greedy(demands, options, Fleet(8)) is None
    assert exactly(demands, options, Fleet(8)).plan is None


def test_few_gpus_are_used_faster() -> None:
    """Fewer GPUs than the cheapest plan takes: both find one that fits, for more watts."""
    demands = {"SS": 70.0, "MM": 40.0, "LL": 20.0}
    options = {"SS": configurations(3.0), "MM": configurations(1.0), "LL": configurations(0.4)}
    free = greedy(demands, options, PLENTY)
    assert free is not None
    tight = Fleet(int(0.8 * free.gpus))
    quick, answer = greedy(demands, options, tight), exactly(demands, options, tight)
    assert quick is not None
    assert answer.plan is not None
    for plan in (quick, answer.plan):
        assert plan.gpus <= tight.gpus
        assert plan.watts > free.watts
        assert all(plan.load(name) >= rate * (1.0 - 1e-6) for name, rate in demands.items())
    assert answer.plan.watts <= quick.watts + 1e-6


def test_what_a_change_costs_keeps_what_runs() -> None:
    options = {"MM": [Configuration("old", 4, 2.0, 1010.0), Configuration("new", 4, 2.0, 1000.0)]}
    running = {"old": 5}
    starts = {"old": 9e5, "new": 9e5}
    stay = exactly({"MM": 10.0}, options, Fleet(100, running, starts, epoch=300.0))
    move = exactly({"MM": 10.0}, options, Fleet(100, running, {"new": 1.0}, epoch=300.0))
    assert stay.plan is not None
    assert move.plan is not None
    assert stay.plan.by_kind() == {"old": 5}
    assert move.plan.by_kind() == {"new": 5}


def test_instances_stay_warm_without_load() -> None:
    answer = exactly({"MM": 0.1}, {"MM": configurations()}, Fleet(100, least=3))
    assert answer.plan is not None
    assert sum(answer.plan.by_kind().values()) >= 3


def test_no_more_instances_of_a_kind_are_planned_than_there_are() -> None:
    options = {"MM": [Configuration("cheap", 1, 2.0, 100.0), Configuration("dear", 1, 2.0, 150.0)]}
    answer = solve({"MM": 10.0}, options, Fleet(100, most={"cheap": 3, "dear": 4}), gap=0.0, limit=20.0)
    assert answer.plan is not None
    assert answer.plan.by_kind() == {"cheap": 3, "dear": 2}
    assert greedy({"MM": 10.0}, options, Fleet(100, most={"cheap": 3})) is None


def test_a_type_without_demand_gets_nothing() -> None:
    options = {"SS": configurations(), "LL": configurations()}
    plan = greedy({"SS": 1.0, "LL": 0.0}, options, PLENTY)
    assert plan is not None
    assert plan.load("LL") == 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from([2, 4]), st.floats(0.1, 9.0), st.floats(1.0, 900.0)),
        min_size=1,
        max_size=20,
    )
)
def test_nothing_kept_is_beaten_and_nothing_dropped_is_unbeaten(rows: list[tuple[int, float, float]]) -> None:
    every = [Configuration("k", tp, load, watts) for tp, load, watts in rows]
    kept = pareto(every)

    def beaten(one: Configuration, by: Configuration) -> bool:
        better = by.load >= one.load and by.watts <= one.watts
        return by.tp == one.tp and better and (by.load, by.watts) != (one.load, one.watts)

    assert not any(beaten(a, b) for a in kept for b in kept)
    assert all(any(beaten(one, by) or by == one for by in kept) for one in every)


def test_a_plan_counts_its_watts_and_gpus() -> None:
    one, two = Configuration("a", 2, 1.0, 100.0), Configuration("b", 8, 9.0, 700.0)
    plan = Plan((("SS", one, 3), ("LL", two, 1)))
    assert (plan.watts, plan.gpus) == (1000.0, 14)
    assert plan.load("SS") == pytest.approx(3.0)
    fleet = Fleet(14, {"a": 1, "c": 2}, {"a": 3000.0}, {"c": 600.0}, epoch=300.0)
    assert total_watts(plan, fleet) == pytest.approx(1000.0 + 2 * 10.0 + 2 * 2.0)
