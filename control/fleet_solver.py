"""Shell: solves the fleet program, within a limit of time.

`greedy` is the first answer and the relaxation without whole numbers the bound. Only where they are further
apart than `gap` is the program solved, within `limit` seconds; the better of the two is returned, with the
gap to the bound. The relaxation says what each count more would cost at least, so none need be tried that
would cost more than the first answer: that is most of them, and most of the time.
scipy's HiGHS costs 38 MB that a gateway need not hold: it asks `control.plan_child`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

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
from control.provision import Solution

ROUNDING = 1e-6
LIMIT = 3.0  # seconds


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
    limit: float = LIMIT,
) -> Solved:
    """Blocks for `limit` seconds at most or so, of a clock on the wall: a planner gives way to all others.

    `plan` None: there are too few GPUs, or nothing serves a type."""
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


def solution(
    demands: Mapping[str, float],
    options: Mapping[str, Sequence[Configuration]],
    fleet: Fleet,
    limit: float = LIMIT,
) -> Solution:
    """For `control.provision`. With a limit of infinity it is the same on every machine."""
    found = solve(demands, options, fleet, limit=limit)
    return Solution(found.plan, found.gap)


def _found(made: Program, known: float | None, gap: float, limit: float) -> _Found | None:
    """None: there is no answer."""
    began = time.perf_counter()
    bound, dearer = _relaxed(made)
    if bound is None:
        return None
    if known is not None and known <= (1.0 + gap) * bound:
        return _Found(bound, None)
    most = np.full(len(made.cost), np.inf)
    if known is not None:
        whole = slice(0, len(made.columns))  # starts and stops follow from the counts
        most[whole] = np.floor((known - bound) / np.maximum(dearer[whole], ROUNDING) + ROUNDING)
    answer = milp(
        made.cost,
        constraints=LinearConstraint(made.matrix, made.lower, made.upper),
        bounds=Bounds(0.0, most),
        integrality=np.array([1] * len(made.columns) + [0] * (len(made.cost) - len(made.columns))),
        options={"time_limit": max(0.1, limit - (time.perf_counter() - began)), "mip_rel_gap": gap},
    )
    better = answer.mip_dual_bound
    counts = None if answer.x is None else np.asarray(answer.x, dtype=np.float64).tolist()
    return _Found(bound if better is None else max(bound, float(better)), counts)


def _relaxed(made: Program) -> tuple[float | None, Floats]:
    """The least cost where counts need not be whole (None: there is none), and what each count adds to it."""
    up, low = np.isfinite(made.upper), np.isfinite(made.lower)
    answer = linprog(
        made.cost,
        A_ub=np.vstack([made.matrix[up], -made.matrix[low]]),
        b_ub=np.concatenate([made.upper[up], -made.lower[low]]),
    )
    if answer.fun is None or answer.status != 0:
        return None, made.cost
    return float(answer.fun), np.asarray(answer.lower.marginals, dtype=np.float64)
