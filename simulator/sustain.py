"""Pure: what one instance sustains at maximum clock, and how far a trace is scaled for a scenario.

The sustainable constant rate is found by bisection over 1,200 s of uniformly random arrivals with lengths
of the trace, two seeds, first come first served: for D the attainment must reach a threshold, for T 99 % of
requests must stay within TPOT and the 99th percentile of TTFT within 5 s.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from joulegate.domain import Objectives
from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.cluster import Setup, run_fixed
from simulator.recipe import scale
from simulator.results import Pooled
from simulator.score import Ended, Everyone, Scorer
from simulator.streams import constant
from simulator.workload import Floats, Stream, census

SPAN = Seconds(1200.0)
SEEDS = (0, 1)
PRECISION = 1.005
FEWEST = 20  # requests on which anything is said
T_SHARE, T_TTFT = 0.99, 5.0


@dataclass(frozen=True, slots=True)
class Sustained:
    """Requests per second, and the P99 of E2E at that rate (seconds)."""

    rate: float
    e2e_p99: float


def sustainable(load: Stream, setup: Setup, threshold_pct: float | None) -> Sustained:
    """The largest constant rate at maximum clock. `threshold_pct` None: by T's rule."""
    count = census(load).count

    def at(rate: float) -> tuple[Pooled, Ended]:
        top, everyone = setup.costs[0].profile.max_clock, Everyone()
        runs = [
            run_fixed(
                constant(load, count, rate, SPAN, seed),
                setup,
                top,
                Scorer(setup.objectives, setup.cuts, hear=everyone.hear),
            )
            for seed in SEEDS
        ]
        return Pooled(tuple(runs)), everyone.all()

    def holds(rate: float) -> bool:
        pooled, all_of_them = at(rate)
        if threshold_pct is not None:
            return pooled.attainment() >= threshold_pct
        within = float(np.mean(all_of_them.tpot <= setup.objectives.tpot))
        return within >= T_SHARE and _p99(all_of_them.ttft) <= T_TTFT

    rate = _largest(holds, 0.1, FEWEST / SPAN, "requests/s")
    return Sustained(rate, _p99(at(rate)[1].e2e))


def _p99(values: Floats) -> float:
    return float(np.quantile(values, 0.99, method="higher"))


def largest_scale(load: Stream, setup: Setup, threshold_pct: float) -> float:
    """The largest scale at which the trace itself reaches the threshold at maximum clock."""
    top = setup.costs[0].profile.max_clock

    def holds(factor: float) -> bool:
        runs = [run_fixed(scale(load, factor, seed), setup, top) for seed in SEEDS]
        return Pooled(tuple(runs)).attainment() >= threshold_pct

    return _largest(holds, 0.05, FEWEST / census(load).count, "of the trace")


def scale_for(load: Stream, rate: float, peak_ratio: float) -> float:
    """The scale at which the busiest minute is `peak_ratio` of a rate."""
    return peak_ratio * rate / census(load).peak


def with_e2e(objectives: Objectives, e2e: float) -> Objectives:
    """T's objectives once E* is known."""
    return Objectives(objectives.ttft, objectives.tpot, Seconds(e2e), objectives.max_slowdown)


def _largest(holds: Callable[[float], bool], start: float, least: float, unit: str) -> float:
    """By doubling or halving, then bisection in logarithm. Raises UserError: not even `least` holds."""
    low, high = start, 2.0 * start
    while holds(high):
        low, high = high, 2.0 * high
    while low <= start and not holds(low):
        if low <= least:
            raise UserError(
                f"the engine does not keep the objectives even at {low:.2g} {unit}",
                "looser objectives or a lower load.attainment_pct in the scenario; "
                "with load.scale set, policies other than throttllem",
            )
        low, high = max(least, 0.5 * low), low
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
