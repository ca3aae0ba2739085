"""Shell: solves the fleet program in a child process: scipy's HiGHS costs 38 MB that a gateway need not hold.

`greedy` is the first answer and the relaxation without whole numbers the bound. Only where they are further
apart than `gap` is the program solved, within `limit` seconds; the better of the two is returned, with the
gap to the bound. If the child dies or does not answer, the greedy plan stands.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

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

PATIENCE = 30.0  # seconds beyond the limit that the child may take: it may have to start first
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
    """What the child says: the bound, and the counts if the program had to be solved."""

    bound: float
    counts: Sequence[float] | None


class FleetSolver:
    """One child process, started with the first question (or `warm_up`). Close it."""

    def __init__(self, gap: float = 0.005, limit: float = 0.8) -> None:
        self._gap = gap
        self._limit = limit
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))

    def warm_up(self) -> None:
        """Start the child and let it load the solver."""
        with contextlib.suppress(BrokenProcessPool):
            self._pool.submit(_load).result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def solve(
        self,
        demands: Mapping[str, float],
        options: Mapping[str, Sequence[Configuration]],
        fleet: Fleet,
    ) -> Solved:
        """Blocks; call it from a thread. `plan` None: the GPUs do not suffice, or nothing serves a type."""
        began = time.perf_counter()
        quick = greedy(demands, options, fleet)
        if any(rate > 0.0 and not options[name] for name, rate in demands.items()):
            return Solved(None, None, time.perf_counter() - began, "greedy")
        made = program(demands, options, fleet)
        known = None if quick is None else total_watts(quick, fleet)
        found = self._asked(made, known)
        if found is None:
            return Solved(quick, None, time.perf_counter() - began, "greedy")
        best, by = quick, "greedy"
        if found.counts is not None:
            exact = plan_of(made, found.counts)
            if best is None or total_watts(exact, fleet) < total_watts(best, fleet):
                best, by = exact, "program"
        gap = None if best is None else max(0.0, total_watts(best, fleet) / max(found.bound, 1e-9) - 1.0)
        return Solved(best, gap, time.perf_counter() - began, by)

    def _asked(self, made: Program, known: float | None) -> _Found | None:
        try:
            future: Future[_Found | None] = self._pool.submit(_found, made, known, self._gap, self._limit)
            return future.result(timeout=self._limit + PATIENCE)
        except (BrokenProcessPool, TimeoutError):
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))
            return None


def _load() -> None:
    import scipy.optimize  # noqa: F401


def _found(made: Program, known: float | None, gap: float, limit: float) -> _Found | None:
    """In the child. None: there is no answer.

    The relaxation rounded down, less a few of each, is most of the plan; what is left to serve is a small
    program that may be solved roughly. Only if that is not good enough is the whole program tried.
    """
    import numpy as np

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
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

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
