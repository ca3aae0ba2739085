"""The fleet program: HiGHS serves everybody within the GPUs; greedy is close to it and never below."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from control.fleet_plan import Configuration, Plan, greedy, pareto, plan_of, program

GPUS = 10_000


def configurations(scale: float = 1.0) -> list[Configuration]:
    """Watts rise with load, convex; a larger instance carries more than its share."""
    return [
        Configuration(f"tp{tp}", tp, scale * load * tp**1.1, tp * (80.0 + 300.0 * load**2))
        for tp in (2, 4, 8)
        for load in np.linspace(0.2, 1.0, 10).tolist()
    ]


def solved(demands: dict[str, float], options: dict[str, list[Configuration]], gpus: int = GPUS) -> Plan:
    made = program(demands, options, gpus)
    answer = milp(
        made.cost,
        constraints=LinearConstraint(made.matrix, made.lower, np.inf),
        integrality=np.ones(len(made.cost), dtype=np.int64),
        bounds=Bounds(0, np.inf),
        options={"mip_rel_gap": 0.005, "time_limit": 10.0},
    )
    assert answer.x is not None
    return plan_of(made, answer.x)


rates = st.dictionaries(st.sampled_from(["SS", "MM", "LL"]), st.floats(0.1, 60.0), min_size=1)


@settings(deadline=None, max_examples=25)
@given(rates)
def test_the_program_serves_every_type_and_greedy_is_never_better_and_not_much_worse(
    demands: dict[str, float],
) -> None:
    options = {"SS": configurations(3.0), "MM": configurations(1.0), "LL": configurations(0.4)}
    best, quick = solved(demands, options), greedy(demands, options, GPUS)
    assert quick is not None
    for plan in (best, quick):
        assert all(plan.load(name) >= rate * (1.0 - 1e-6) for name, rate in demands.items())
    largest = sum(max(c.watts for c in options[name]) for name in demands)
    assert best.watts <= quick.watts * 1.006 + 1e-6
    assert quick.watts <= best.watts + largest


def test_too_few_gpus_are_seen_by_both() -> None:
    demands, options = {"MM": 500.0}, {"MM": configurations()}
    assert greedy(demands, options, 8) is None
    made = program(demands, options, 8)
    constraint = LinearConstraint(made.matrix, made.lower, np.inf)
    assert (
        milp(made.cost, constraints=constraint, integrality=np.ones(len(made.cost), dtype=np.int64)).x is None
    )


def test_a_type_without_demand_gets_nothing() -> None:
    options = {"SS": configurations(), "LL": configurations()}
    plan = greedy({"SS": 1.0, "LL": 0.0}, options, GPUS)
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
