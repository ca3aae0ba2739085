"""Pure: what came out of a simulation, and whether a saving counts.

A saving counts only if service is not worse: attainment (by requests and by output tokens) at most half a
point under the baseline's, every P99 within its objective or 1.2 times the baseline's, P99 of the gaps
between tokens within twice the TPOT objective or 1.5 times the baseline's. Requests are pooled over seeds.
Energy is per served token; a request that was not served is a miss.
"""

from dataclasses import dataclass, field

import numpy as np

from joulegate.domain import Batch, Cuts, Objectives, Size
from joulegate.units import MegaHertz
from predictor.physics import PhysicsModel
from simulator.histogram import Histogram
from simulator.workload import Floats, Ints

ATTAINMENT_LOSS = 0.5  # points
P99_GRACE = 1.2
ITL_GRACE = 1.5
FIVE = 5.0  # the "5x" objectives: times the same request alone at maximum clock


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One policy on one load. Per request: seconds and tokens; inf where it was not served."""

    input: Ints
    output: Ints
    ttft: Floats
    tpot: Floats
    e2e: Floats
    gaps: Histogram  # seconds between two tokens of a request
    joules_released: float
    joules_owned: float
    span: float  # seconds until the last request ended
    gpus_avg: float
    clock_changes: int
    residency: dict[int, float]  # MHz -> seconds of instance-time
    watts: Floats  # mean board power of the fleet in each ten seconds
    instances: Floats  # instances on, in each ten seconds
    fives: Floats | None = None  # 1.0 where the request was within 5x


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Runs of one policy over seeds, as one."""

    runs: tuple[Run, ...]
    objectives: Objectives
    cuts: Cuts = field(default_factory=Cuts)

    def all(self, name: str) -> Floats:
        return np.concatenate([np.asarray(getattr(run, name), dtype=np.float64) for run in self.runs])

    @property
    def tokens(self) -> float:
        served = np.isfinite(self.all("ttft"))
        return float(self.all("output")[served].sum())

    @property
    def total_tokens(self) -> float:
        served = np.isfinite(self.all("ttft"))
        return float((self.all("output") + self.all("input"))[served].sum())

    def joules(self, owned: bool = False) -> float:
        return sum(run.joules_owned if owned else run.joules_released for run in self.runs)

    def met(self) -> Floats:
        """1.0 for each request that met its objectives."""
        objectives = self.objectives
        met = self.all("tpot") <= objectives.tpot
        if objectives.e2e is not None:
            met &= self.all("e2e") <= objectives.e2e
        else:
            met &= self.all("ttft") <= np.array(objectives.ttft)[self.classes()]
        return met.astype(np.float64)

    def attainment(self) -> float:
        return 100.0 * float(self.met().mean())

    def attainment_tokens(self) -> float:
        output = self.all("output")
        return 100.0 * float((self.met() * output).sum() / output.sum())

    def attainment_5x(self) -> float | None:
        if any(run.fives is None for run in self.runs):
            return None
        return 100.0 * float(self.all("fives").mean())

    def classes(self) -> Ints:
        return np.searchsorted(np.array(self.cuts.input), self.all("input"), side="right")

    def p99(self, name: str) -> float:
        return float(np.quantile(self.all(name), 0.99, method="higher"))

    def ttft_p99(self, size: Size) -> float | None:
        values = self.all("ttft")[self.classes() == int(size)]
        return float(np.quantile(values, 0.99, method="higher")) if len(values) else None

    def itl_p99(self) -> float:
        gaps = Histogram(self.runs[0].gaps.bounds)
        for run in self.runs:
            gaps.add(run.gaps)
        return gaps.quantile(0.99)

    def median_e2e(self) -> float:
        return float(np.median(self.all("e2e")))


def joules_per_token(pooled: Pooled, owned: bool = False) -> float:
    return pooled.joules(owned) / max(1.0, pooled.tokens)


def saving_pct(policy: Pooled, baseline: Pooled, owned: bool = False) -> float:
    """Energy per served output token saved against the baseline, in percent."""
    return 100.0 * (1.0 - joules_per_token(policy, owned) / joules_per_token(baseline, owned))


def saving_ci(policy: Pooled, baseline: Pooled) -> tuple[float, float] | None:
    """95 % interval of the saving, paired over seeds; None with fewer than two."""
    pairs = [
        saving_pct(Pooled((one,), policy.objectives), Pooled((other,), policy.objectives))
        for one, other in zip(policy.runs, baseline.runs, strict=True)
    ]
    if len(pairs) < 2:
        return None
    mean, deviation = float(np.mean(pairs)), float(np.std(pairs, ddof=1))
    reach = _student(len(pairs) - 1) * deviation / len(pairs) ** 0.5
    return mean - reach, mean + reach


def _student(freedom: int) -> float:
    """97.5 % point of Student's t."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return table[freedom - 1] if freedom <= len(table) else 1.96 + 2.4 / freedom


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


def fives_met(run: Run, model: PhysicsModel) -> Floats:
    """1.0 for each request whose TTFT and TPOT are within five times its own, alone at maximum clock."""
    top, chunk = model.clocks[-1], model.profile.engine.max_num_batched_tokens
    alone = {int(n): _prefill(model, int(n), chunk, top) for n in np.unique(run.input)}
    ttft = np.array([alone[int(n)] for n in run.input])
    context = run.input + 0.5 * run.output
    base = float(model.iteration_time(Batch(1, 0.0), top))
    slope = float(model.iteration_time(Batch(1, 1000.0), top)) - base
    step = base + slope * context / 1000.0
    return ((run.ttft <= FIVE * ttft) & (run.tpot <= FIVE * step)).astype(np.float64)


def _prefill(model: PhysicsModel, tokens: int, chunk: int, clock: MegaHertz) -> float:
    time, done = 0.0, 0
    while done < tokens:
        n = min(chunk, tokens - done)
        time += model.iteration_time(Batch(0, 0.0, n, n * (done + 0.5 * n)), clock)
        done += n
    return time
