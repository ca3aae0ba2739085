"""Pure: an engine nobody profiled, learned from its own traffic, slowed only inside what it has shown.

At full clock one iteration takes t1 = a + b*B + c*K + d*N (least squares, none negative). Slowed to x =
f/f_max the decode part takes s(x) times as long, the prompt part 1/x times:

    s(x) = 1 - k + k/x           for x >= x_known: k is what was observed, plus two standard errors
    s(x) = s(x_known) * x_known / x  below: nothing scales worse than the clock itself

x_known is one step (7 %) below the lowest clock seen: that far the law is believed, and no step can go wrong
by more than itself. Both are kept per power of two of the batch, and never get better with a larger batch.
Before any lower clock was seen k = 1, so whoever picks the lowest clock that meets its objectives explores
downwards only inside its slack, and every step gives the observation that allows the next. Fewer than
`first_samples` samples at full clock: no model, and default clocks.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt

from joulegate.domain import Batch
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.online_samples import Sample

BUCKETS = 14  # batches up to 2^13


@dataclass(frozen=True, slots=True)
class LearnSettings:
    first_samples: int = 8  # at full clock, before anything is learned
    clock_samples: int = 8  # in a batch bucket, before a lower clock counts as seen
    full_clock_ratio: float = 0.98  # at or above this share of the highest clock nothing is slowed
    step_ratio: float = 0.93  # of the lowest clock seen: how far below it the law is believed
    standard_errors: float = 2.0
    noise: float = 0.02  # relative, least assumed for one sample


@dataclass(frozen=True, slots=True)
class SpeedLaw:
    """How decode iterations of one batch bucket slow down."""

    k: float
    known: float  # lowest x at which k is believed

    def slowdown(self, x: float) -> float:
        if x >= self.known:
            return 1.0 - self.k + self.k / x
        return (1.0 - self.k + self.k / self.known) * self.known / x


class OnlineModel:
    """`EngineModel` of one engine, frozen at the moment it was learned."""

    def __init__(
        self,
        clocks: Sequence[MegaHertz],
        idle_watts: Watts,
        coefficients: tuple[float, float, float, float],
        laws: Sequence[SpeedLaw],
        power: Sequence[tuple[float, float]],
    ) -> None:
        self._clocks = tuple(sorted(clocks))
        self._idle = idle_watts
        self.coefficients = coefficients
        self.laws = tuple(laws)
        self.power = tuple(power)  # (clock, watts) as seen
        self._power_clocks = [clock for clock, _ in power]
        self._power = [watts for _, watts in power]

    @property
    def clocks(self) -> tuple[MegaHertz, ...]:
        return self._clocks

    @property
    def idle_watts(self) -> Watts:
        return self._idle

    def iteration_time(self, batch: Batch, clock: MegaHertz) -> Seconds:
        a, b, c, d = self.coefficients
        x = min(1.0, clock / self._clocks[-1])
        decode = a + b * batch.decoding + c * batch.context_tokens
        law = self.laws[min(batch.decoding.bit_length(), BUCKETS - 1)]
        return Seconds(decode * law.slowdown(x) + d * batch.prefill_tokens / x)

    def watts(self, batch: Batch, clock: MegaHertz) -> Watts:
        """Measured where this clock was seen; between two such clocks what lies above idle scales with it.

        Below all of them power is taken to fall with the square of the clock, more than most GPUs show: time
        is guarded by pessimism, and without hope for its energy no lower clock would ever be tried. Without
        telemetry every clock draws the same, so that no saving is ever claimed. Load is not told apart:
        power follows the clock far more than the batch (papers §2.1).
        """
        if not self._power:
            return self._idle
        if clock < self._power_clocks[0]:
            return Watts(max(self._idle, self._power[0] * (clock / self._power_clocks[0]) ** 2))
        at = max(0, bisect_right(self._power_clocks, clock) - 1)
        dynamic = (self._power[at] - self._idle) * min(clock / self._power_clocks[at], self._ceiling(at))
        return Watts(self._idle + dynamic)

    def _ceiling(self, at: int) -> float:
        """No more than the next clock above was seen to draw."""
        if at + 1 == len(self._power):
            return inf
        return (self._power[at + 1] - self._idle) / max(1e-9, self._power[at] - self._idle)


def learn(
    samples: Iterable[Sample], clocks: Sequence[MegaHertz], idle_watts: Watts, settings: LearnSettings
) -> OnlineModel | None:
    """A model from what was seen, or None while too little was seen at full clock.

    About 2 ms for 1,000 samples: call it every few seconds, not every tick.
    """
    top = max(clocks)
    kept = [sample for sample in samples if sample.seconds > 0.0]
    full = [sample for sample in kept if sample.clock >= settings.full_clock_ratio * top]
    if len(full) < settings.first_samples:
        return None
    coefficients = _least_squares(full)
    slowed = [sample for sample in kept if sample.clock < settings.full_clock_ratio * top]
    laws = _speed_laws(slowed, coefficients, float(top), settings)
    return OnlineModel(clocks, idle_watts, coefficients, laws, _power(kept, idle_watts))


def _features(batch: Batch) -> tuple[float, float, float, float]:
    return 1.0, float(batch.decoding), batch.context_tokens, float(batch.prefill_tokens)


def _least_squares(samples: Sequence[Sample]) -> tuple[float, float, float, float]:
    """Non-negative, relative errors: coordinate descent on the 4 x 4 normal equations."""
    gram = [[0.0] * 4 for _ in range(4)]
    right = [0.0] * 4
    for sample in samples:
        row = [value / sample.seconds for value in _features(sample.batch)]
        for i in range(4):
            right[i] += row[i]
            for j in range(4):
                gram[i][j] += row[i] * row[j]
    solution = [0.0] * 4
    for _ in range(500):
        for i in range(4):
            if gram[i][i] > 0.0:
                rest = sum(gram[i][j] * solution[j] for j in range(4) if j != i)
                solution[i] = max(0.0, (right[i] - rest) / gram[i][i])
    return solution[0], solution[1], solution[2], solution[3]


def _speed_laws(
    slowed: Sequence[Sample],
    coefficients: tuple[float, float, float, float],
    top: float,
    settings: LearnSettings,
) -> list[SpeedLaw]:
    a, b, c, d = coefficients
    seen: list[list[tuple[float, float]]] = [[] for _ in range(BUCKETS)]
    for sample in slowed:
        batch, x = sample.batch, sample.clock / top
        decode = a + b * batch.decoding + c * batch.context_tokens
        if batch.decoding and decode > 0.0:
            slowdown = (sample.seconds - d * batch.prefill_tokens / x) / decode
            seen[min(batch.decoding.bit_length(), BUCKETS - 1)].append((x, slowdown))
    laws: list[SpeedLaw] = []
    unknown = SpeedLaw(k=1.0, known=1.0)
    for bucket in reversed(seen):  # a bucket without its own law may use that of a larger batch
        law = _law(bucket, settings) if len(bucket) >= settings.clock_samples else unknown
        unknown = law
        laws.append(law)
    laws.reverse()
    return _never_better(laws)


def _law(points: Sequence[tuple[float, float]], settings: LearnSettings) -> SpeedLaw:
    """k by least squares of (slowdown - 1) on (1/x - 1), plus its standard errors."""
    lowest = sorted(x for x, _ in points)[settings.clock_samples - 1]
    squares = sum((1.0 / x - 1.0) ** 2 for x, _ in points)
    k = sum((slowdown - 1.0) * (1.0 / x - 1.0) for x, slowdown in points) / squares
    misfit = sum((slowdown - 1.0 - k * (1.0 / x - 1.0)) ** 2 for x, slowdown in points) / len(points)
    spread = sqrt(max(misfit, settings.noise**2) / squares)
    k = min(1.0, max(0.0, k + settings.standard_errors * spread))
    return SpeedLaw(k, settings.step_ratio * min(1.0, lowest))


def _never_better(laws: Sequence[SpeedLaw]) -> list[SpeedLaw]:
    """A larger batch never slows down less: k and the clock known only grow with the bucket."""
    kept: list[SpeedLaw] = []
    for law in laws:
        before = kept[-1] if kept else law
        kept.append(SpeedLaw(max(before.k, law.k), max(before.known, law.known)))
    return kept


def _power(samples: Iterable[Sample], idle: Watts) -> list[tuple[float, float]]:
    """(clock, mean watts) of every clock with telemetry, ascending and never falling."""
    sums: dict[float, tuple[float, int]] = {}
    for sample in samples:
        if sample.watts is not None:
            total, count = sums.get(sample.clock, (0.0, 0))
            sums[sample.clock] = (total + sample.watts, count + 1)
    power: list[tuple[float, float]] = []
    for clock in sorted(sums):
        total, count = sums[clock]
        power.append((clock, max([idle, total / count] + [watts for _, watts in power[-1:]])))
    return power
