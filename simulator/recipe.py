"""Pure: what the arrivals of a scenario are made of: traces scaled, together, or spread over a day."""

from dataclasses import dataclass

import numpy as np

from joulegate.units import Seconds
from simulator.streams import Followed, Merged, Repeated, Scaled
from simulator.workload import Floats, Stream, census

DAY = Seconds(86_400.0)


@dataclass(frozen=True, slots=True)
class Curve:
    """Load at hours of the day over its mean: low + swing ((1 + cos)/2)^steepness."""

    low: float
    swing: float
    peak_hour: float
    steepness: float

    def __call__(self, hours: Floats) -> Floats:
        wave: Floats = (1.0 + np.cos(2.0 * np.pi * (hours - self.peak_hour) / 24.0)) / 2.0
        return self.low + self.swing * wave**self.steepness


def daily(low: float, swing: float, peak_hour: float) -> Curve:
    """So steep that the mean over the day is 1."""
    grid = np.linspace(0.0, 24.0, 2400, endpoint=False)
    under, over = 1e-3, 1e3  # the mean falls with steepness
    for _ in range(60):
        middle = (under * over) ** 0.5
        above = float(Curve(low, swing, peak_hour, middle)(grid).mean()) > 1.0
        under, over = (middle, over) if above else (under, middle)
    return Curve(low, swing, peak_hour, under)


@dataclass(frozen=True, slots=True)
class Daily:
    """A day's requests: mean per second, and its shape (see `daily`)."""

    mean: float
    low: float
    swing: float
    peak_hour: float


@dataclass(frozen=True, slots=True)
class Hourly:
    """How often a row is there for the load of its hour to be `mean` times the curve."""

    curve: Curve
    mean: float  # requests a second
    factor: float  # of everything
    span: float
    count: int  # rows in the span

    def __call__(self, at: Floats) -> Floats:
        wanted = self.mean * self.curve(at / 3600.0)
        return self.factor * wanted * self.span / self.count

    @property
    def most(self) -> float:
        top = self.mean * (self.curve.low + self.curve.swing)
        return self.factor * top * self.span / self.count


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a scenario's arrivals are made of."""

    trace: Stream
    also: tuple[tuple[Stream, float], ...] = ()  # at the same time, scaled so
    day: Daily | None = None

    def expected(self, factor: float) -> float:
        """About how many requests `load` brings."""
        others = sum(times * census(trace).count for trace, times in self.also)
        mine = census(self.trace).count if self.day is None else self.day.mean * DAY
        return factor * mine + others

    def same(self, factor: float) -> bool:
        """Whether every seed brings the same arrivals: nothing is copied or left out."""
        return self.day is None and all(times == 1.0 for times in (factor, *(each for _, each in self.also)))

    def load(self, factor: float, seed: int) -> Stream:
        """The arrivals of one seed, the trace `factor` times."""
        if self.day is None:
            others = [scale(trace, times, seed + 1000 * n) for n, (trace, times) in enumerate(self.also, 1)]
            mine = scale(self.trace, factor, seed)
            return Merged((mine, *others)) if others else mine
        day, whole = self.day, Repeated(self.trace, DAY, seed)
        count = census(whole).count
        curve = daily(day.low, day.swing, day.peak_hour)
        factors = Hourly(curve, day.mean, factor, whole.span, count)
        return Followed(whole, count, factors, factors.most, seed)


def scale(stream: Stream, factor: float, seed: int) -> Scaled:
    """`factor` times the stream (`simulator.streams.Scaled`)."""
    return Scaled(stream, census(stream).count, factor, seed)
