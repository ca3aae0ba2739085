"""Pure: what came out of a simulation, and whether a saving counts.

A saving counts only if service is not worse: attainment (by requests and by output tokens) at most half a
point under the baseline's, every P99 within its objective or 1.2 times the baseline's, P99 of the gaps
between tokens within twice the TPOT objective or 1.5 times the baseline's. Requests are pooled over seeds.
Energy is per served token; a request that was not served is a miss.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from joulegate.domain import Objectives, Size
from joulegate.student import student
from simulator.histogram import Histogram
from simulator.score import Score, total
from simulator.spread import Spread, together
from simulator.workload import Floats

ATTAINMENT_LOSS = 0.5  # points
P99_GRACE = 1.2
ITL_GRACE = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One policy on one load."""

    score: Score
    gaps: Histogram  # seconds between two tokens of a request
    joules_released: float
    joules_owned: float
    span: float  # seconds until the last request ended
    gpus_avg: float
    clock_changes: int
    residency: dict[int, float]  # MHz -> seconds of instance-time
    step: float  # seconds from one figure of the next two to the next
    watts: Floats  # mean board power of the fleet
    instances: Floats  # instances on


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Runs of one policy over seeds, as one."""

    runs: tuple[Run, ...]
    score: Score = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", total([run.score for run in self.runs]))

    @property
    def objectives(self) -> Objectives:
        return self.score.objectives

    @property
    def tokens(self) -> int:
        """Output tokens of requests that were served."""
        return self.score.output_served

    @property
    def total_tokens(self) -> int:
        return self.score.output_served + self.score.input_served

    def joules(self, owned: bool = False) -> float:
        return sum(run.joules_owned if owned else run.joules_released for run in self.runs)

    def attainment(self) -> float:
        return 100.0 * (self.score.met / self.score.requests)

    def attainment_tokens(self) -> float:
        return 100.0 * (self.score.output_met / self.score.output)

    def attainment_5x(self) -> float | None:
        return None if self.score.fives is None else 100.0 * (self.score.fives / self.score.requests)

    def spread(self, name: Literal["ttft", "tpot", "e2e"]) -> Spread:
        if name == "ttft":
            return together(self.score.ttft)
        return self.score.tpot if name == "tpot" else self.score.e2e

    def p99(self, name: Literal["tpot", "e2e"]) -> float:
        return self.spread(name).quantile(0.99)

    def ttft_p99(self, size: Size) -> float | None:
        values = self.score.ttft[size]
        return values.quantile(0.99) if values.count else None

    def itl_p99(self) -> float:
        gaps = Histogram(self.runs[0].gaps.bounds)
        for run in self.runs:
            gaps.add(run.gaps)
        return gaps.quantile(0.99)

    def median_e2e(self) -> float:
        return self.score.e2e.median()


def joules_per_token(pooled: Pooled, owned: bool = False) -> float:
    return pooled.joules(owned) / max(1, pooled.tokens)


def saving_pct(policy: Pooled, baseline: Pooled, owned: bool = False) -> float:
    """Energy per served output token saved against the baseline, in percent."""
    return 100.0 * (1.0 - joules_per_token(policy, owned) / joules_per_token(baseline, owned))


def saving_ci(policy: Pooled, baseline: Pooled) -> tuple[float, float] | None:
    """95 % interval of the saving, paired over seeds; None with fewer than two."""
    pairs = [
        saving_pct(Pooled((one,)), Pooled((other,)))
        for one, other in zip(policy.runs, baseline.runs, strict=True)
    ]
    if len(pairs) < 2:
        return None
    mean, deviation = float(np.mean(pairs)), float(np.std(pairs, ddof=1))
    reach = student(len(pairs) - 1) * deviation / len(pairs) ** 0.5
    return mean - reach, mean + reach


def why_not(policy: Pooled, baseline: Pooled) -> list[str]:
    """Every rule that keeps the saving from counting; empty: it counts."""
    reasons = list(_attainment_lost(policy, baseline))
    objectives = policy.objectives
    if objectives.e2e is None:
        for size in Size:
            here, there = policy.ttft_p99(size), baseline.ttft_p99(size)
            if here is not None and there is not None:
                limit = max(objectives.ttft[size], P99_GRACE * there)
                reasons += _over(f"P99 TTFT of {size.name}", here, limit)
        limit = max(objectives.tpot, P99_GRACE * baseline.p99("tpot"))
        reasons += _over("P99 TPOT", policy.p99("tpot"), limit)
    else:
        reasons += _over("P99 TPOT", policy.p99("tpot"), objectives.tpot)
        reasons += _over("P99 E2E", policy.p99("e2e"), objectives.e2e)
    limit = max(2.0 * objectives.tpot, ITL_GRACE * baseline.itl_p99())
    return reasons + _over("P99 ITL", policy.itl_p99(), limit)


def _attainment_lost(policy: Pooled, baseline: Pooled) -> list[str]:
    rows = [
        ("attainment", policy.attainment(), baseline.attainment()),
        ("attainment by tokens", policy.attainment_tokens(), baseline.attainment_tokens()),
    ]
    return [
        f"{name} {here:.2f} % against {there:.2f} %"
        for name, here, there in rows
        if here < there - ATTAINMENT_LOSS
    ]


def _over(what: str, value: float, limit: float) -> list[str]:
    return [f"{what} {value * 1e3:.0f} ms over {limit * 1e3:.0f} ms"] if value > limit else []


def bucket_bounds() -> tuple[float, ...]:
    """Bounds of the histogram of gaps: 2 % apart from 1 ms to 60 s."""
    return tuple(1e-3 * 1.02**i for i in range(556))
