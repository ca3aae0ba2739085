"""Shell: solves the fleet program, within a limit of time.

`greedy` is the first answer and the relaxation without whole numbers the bound. Only where they are further
apart than `gap` is the program solved, within `limit` seconds; the better of the two is returned, with the
gap to the bound. scipy's HiGHS costs 38 MB that a gateway need not hold: it asks `control.plan_child`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from control.fleet_plan import (
    Configuration,
    Fleet,
    Floats,
    Plan,
    Program,
    greedy,
    plan_of,
    program,
    total_watts,
)

ROUNDING = 1e-6
FREE = 2  # instances of each configuration that rounding may take back


@dataclass(frozen=True, slots=True)
class Solved:
    """A plan, and how far from the best it may be at most (`gap`: ratio; None: no bound)."""

    plan: Plan | None
    gap: float | None
    seconds: float
    by: str  # greedy or program


@dataclass(frozen=True, slots=True)
class _Found:
    """The bound, and the counts if the program had to be solved."""

    bound: float
    counts: Sequence[float] | None


def solve(
    demands: Mapping[str, float],
    options: Mapping[str, Sequence[Configuration]],
    fleet: Fleet,
    gap: float = 0.005,
    limit: float = 0.8,
) -> Solved:
    """Blocks for `limit` seconds or so. `plan` None: there are too few GPUs, or nothing serves a type."""
    began = time.perf_counter()
    quick = greedy(demands, options, fleet)
    if any(rate > 0.0 and not options[name] for name, rate in demands.items()):
        return Solved(None, None, time.perf_counter() - began, "greedy")
    made = program(demands, options, fleet)
    known = None if quick is None else total_watts(quick, fleet)
    found = _found(made, known, gap, limit)
    if found is None:
        return Solved(quick, None, time.perf_counter() - began, "greedy")
    best, by = quick, "greedy"
    if found.counts is not None:
        exact = plan_of(made, found.counts)
        if best is None or total_watts(exact, fleet) < total_watts(best, fleet):
            best, by = exact, "program"
    left = None if best is None else max(0.0, total_watts(best, fleet) / max(found.bound, 1e-9) - 1.0)
    return Solved(best, left, time.perf_counter() - began, by)


def _found(made: Program, known: float | None, gap: float, limit: float) -> _Found | None:
    """None: there is no answer.

    The relaxation rounded down, less a few of each, is most of the plan; what is left to serve is a small
    program that may be solved roughly. Only if that is not good enough is the whole program tried.
    """
    began = time.perf_counter()
    nothing = np.zeros(len(made.cost))
    relaxed, bound = _solved(made, nothing, None, limit)
    if relaxed is None:
        return None
    if known is not None and known <= (1.0 + gap) * bound:
        return _Found(bound, None)
    fixed = np.maximum(0.0, np.floor(relaxed + ROUNDING) - FREE)
    fixed[len(made.columns) :] = 0.0  # starts and stops follow from the counts
    rest = max(bound - float(made.cost @ fixed), ROUNDING * bound)
    answer, _ = _solved(made, fixed, 0.5 * gap * bound / rest, 0.5 * limit)
    if answer is None or float(made.cost @ answer) > (1.0 + gap) * bound:
        left = max(0.1, limit - (time.perf_counter() - began))
        whole, better = _solved(made, nothing, gap, left)
        bound = max(bound, better)
        if answer is None or (whole is not None and made.cost @ whole < made.cost @ answer):
            answer = whole
    return _Found(bound, None if answer is None else answer.tolist())


def _solved(made: Program, fixed: Floats, gap: float | None, limit: float) -> tuple[Floats | None, float]:
    """The best counts of which `fixed` are a part (None: none found in time), and a bound on their cost.

    `gap` None: counts need not be whole.
    """
    done = made.matrix @ fixed
    whole = np.zeros(len(made.cost), dtype=np.int64)
    if gap is not None:
        whole[: len(made.columns)] = 1
    answer = milp(
        made.cost,
        constraints=LinearConstraint(made.matrix, made.lower - done, made.upper - done),
        bounds=Bounds(0.0, np.inf),
        integrality=whole,
        options={"time_limit": limit, "mip_rel_gap": gap or 0.0},
    )
    least = answer.fun if gap is None else answer.mip_dual_bound
    counts = None if answer.x is None else np.asarray(answer.x, dtype=np.float64) + fixed
    return counts, 0.0 if least is None else float(least)
