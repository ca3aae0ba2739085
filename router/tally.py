"""Pure: what is counted on the path of a request, in plain numbers; `router.observe` shows it to Prometheus.

Adding to a list costs a tenth of prometheus_client's locked counters, and the path of a request pays it.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from control.holdback import MeasuredSaving
from router.footprint import Footprint

LATENCY_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.4,
    0.6,
    1,
    2,
    4,
    8,
    16,
    60,
)
RATIO_BOUNDS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
OVERHEAD_BOUNDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)


class Histogram:
    """Counts per bucket and a sum. `bounds` ascending; the last bucket is +Inf."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """Upper bound of the bucket that holds the q-quantile; None when empty."""
        wanted = q * self.count
        if wanted <= 0:
            return None
        seen = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")


@dataclass(slots=True)
class PoolTally:
    """One pool of one model, since the process started."""

    outcomes: dict[str, int] = field(default_factory=dict)
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    asked: dict[str, int] = field(default_factory=dict)  # by objective: requests it applied to
    met: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    joules: float = 0.0  # attributed to requests
    spilled: int = 0
    retried: int = 0

    def outcome(self, name: str) -> None:
        self.outcomes[name] = self.outcomes.get(name, 0) + 1

    def objective(self, name: str, met: bool) -> None:
        self.asked[name] = self.asked.get(name, 0) + 1
        if met:
            self.met[name] = self.met.get(name, 0) + 1


@dataclass(slots=True)
class InstanceTally:
    """One instance: energy and what the same work would have cost at default clocks."""

    joules: float = 0.0  # measured by its GPUs' counters
    baseline_joules: float = 0.0  # estimated
    decisions: dict[str, int] = field(default_factory=dict)
    clock_changes: int = 0


@dataclass(slots=True)
class Tally:
    """Everything the gateway counts. Keys of `pools` are (model, pool)."""

    pools: dict[tuple[str, str], PoolTally] = field(default_factory=dict)
    instances: dict[str, InstanceTally] = field(default_factory=dict)
    prediction_error: dict[str, Histogram] = field(default_factory=dict)
    overhead: Histogram = field(default_factory=lambda: Histogram(OVERHEAD_BOUNDS))
    lease_expirations: int = 0
    footprint: Footprint = field(default_factory=Footprint)
    saving: MeasuredSaving | None = None  # by the holdback, as of the last minute
    key_joules: dict[str, float] = field(default_factory=dict)  # attributed, by API key
    refusals: dict[str, int] = field(default_factory=dict)  # errors no instance had a part in, by code

    def predicted(self, what: str, predicted: float, actual: float) -> None:
        """Keep predicted/actual, so that 1 is right and more is conservative."""
        if actual > 0 and predicted >= 0:
            histogram = self.prediction_error.get(what)
            if histogram is None:
                histogram = self.prediction_error[what] = Histogram(RATIO_BOUNDS)
            histogram.add(predicted / actual)
