"""Pure: arrivals for a simulation: traces scaled and cut, and constant-rate load made from them."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from control.floor import Demand
from joulegate.units import Seconds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DAY = Seconds(86_400.0)
LOOKED_AT = 10.0  # seconds
SPREAD = 30.0  # seconds around the original at which further copies of a row arrive


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of arrival; seconds from the start, tokens."""

    at: Floats
    input: Ints
    output: Ints
    span: Seconds  # of the whole trace, idle ends included
    cached: Ints | None = None  # of the input, what the engine has in its prefix cache; None: nothing

    def __len__(self) -> int:
        return len(self.at)


class Foresight:
    """What a load will bring, which only an oracle knows."""

    def __init__(self, load: Load) -> None:
        bins = (load.at // LOOKED_AT).astype(np.int64)
        weights = (np.ones(len(load)), load.input, load.output)
        self._rates = np.array([np.bincount(bins, each) for each in weights]) / LOOKED_AT

    def mean(self, now: float, within: float) -> Demand:
        """Of what arrives from `now` on."""
        requests, tokens, output = self._seen(now, within).mean(axis=1)
        tokens, output = tokens / max(requests, 1e-9), output / max(requests, 1e-9)
        return Demand(requests, tokens, tokens, output)

    def most(self, now: float, within: float, like: Demand) -> float:
        """Requests per second like those, of which the busiest ten seconds from `now` on have the work."""
        each = np.array([[1.0], [like.input_tokens], [like.output_tokens]])
        return float((self._seen(now, within) / each).max())

    def _seen(self, now: float, within: float) -> Floats:
        first = min(int(now // LOOKED_AT), self._rates.shape[1] - 1)
        return self._rates[:, first : first + ceil(within / LOOKED_AT)]


def scale(load: Load, factor: float, seed: int) -> Load:
    """`factor` times the load: each row floor(factor) + Bernoulli(rest) times.

    The first copy keeps its time, further ones are U(-30, 30) s away, reflected at the ends.
    """
    rng = np.random.default_rng(seed)
    copies = np.floor(factor) + (rng.random(len(load)) < factor % 1.0)
    picked, times = [], []
    for copy in range(int(copies.max(initial=0))):
        rows = np.flatnonzero(copies > copy)
        moved = load.at[rows] + (rng.uniform(-SPREAD, SPREAD, len(rows)) if copy else 0.0)
        moved = np.abs(moved)
        times.append(np.where(moved > load.span, 2.0 * load.span - moved, moved))
        picked.append(rows)
    if not picked:
        return Load(load.at[:0], load.input[:0], load.output[:0], load.span)
    at, rows = np.concatenate(times), np.concatenate(picked)
    order = np.argsort(at, kind="stable")
    return Load(at[order], load.input[rows[order]], load.output[rows[order]], load.span)


def half(load: Load, second: bool) -> Load:
    """One half of the time of a load, from its own zero."""
    middle = 0.5 * load.span
    rows = load.at >= middle if second else load.at < middle
    start = middle if second else 0.0
    return Load(load.at[rows] - start, load.input[rows], load.output[rows], Seconds(middle))


def constant(load: Load, rate: float, span: Seconds, seed: int) -> Load:
    """`rate` requests a second at uniformly random times, lengths drawn from the rows of `load`."""
    rng = np.random.default_rng(seed)
    count = round(rate * span)
    at = np.sort(rng.uniform(0.0, span, count))
    rows = rng.integers(0, len(load), count)
    return Load(at, load.input[rows], load.output[rows], span)


def peak_minute(load: Load) -> float:
    """Requests per second in the busiest minute of the clock of the trace."""
    minutes = np.bincount((load.at // 60.0).astype(np.int64))
    return float(minutes.max(initial=0)) / 60.0


def merged(loads: list[Load]) -> Load:
    """Several loads at the same time."""
    at = np.concatenate([load.at for load in loads])
    order = np.argsort(at, kind="stable")
    tokens_in = np.concatenate([load.input for load in loads])
    tokens_out = np.concatenate([load.output for load in loads])
    span = Seconds(max(float(load.span) for load in loads))
    return Load(at[order], tokens_in[order], tokens_out[order], span)


def shifted(load: Load, seconds: float) -> Load:
    """The load begun `seconds` later, what stood before put at its end."""
    at = (load.at - seconds) % load.span
    order = np.argsort(at, kind="stable")
    return Load(at[order], load.input[order], load.output[order], load.span)


def repeated(load: Load, span: Seconds, seed: int) -> Load:
    """Copies end to end until `span` is full, each shifted circularly by a random time."""
    rng = np.random.default_rng(seed)
    count = int(np.ceil(span / load.span))
    copies = [shifted(load, float(rng.uniform(0.0, load.span))) for _ in range(count)]
    at = np.concatenate([copy.at + n * load.span for n, copy in enumerate(copies)])
    kept = at < span
    tokens_in = np.concatenate([copy.input for copy in copies])
    tokens_out = np.concatenate([copy.output for copy in copies])
    return Load(at[kept], tokens_in[kept], tokens_out[kept], span)


def followed(load: Load, factors: Floats, seed: int) -> Load:
    """Each row `factors[row]` times, as in `scale`: the whole part for sure, the rest by chance."""
    rng = np.random.default_rng(seed)
    copies = (np.floor(factors) + (rng.random(len(load)) < factors % 1.0)).astype(np.int64)
    rows = np.repeat(np.arange(len(load)), copies)
    first = np.concatenate([[True], rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, dtype=bool)
    at = np.abs(load.at[rows] + np.where(first, 0.0, rng.uniform(-SPREAD, SPREAD, len(rows))))
    at = np.where(at > load.span, 2.0 * load.span - at, at)
    order = np.argsort(at, kind="stable")
    return Load(at[order], load.input[rows[order]], load.output[rows[order]], load.span)


def daily(hours: Floats, low: float, swing: float, peak_hour: float) -> Floats:
    """Load at hours of the day over its mean: low + swing ((1 + cos)/2)^g, g such that the mean is 1."""

    def shape(h: Floats, g: float) -> Floats:
        wave: Floats = ((1.0 + np.cos(2.0 * np.pi * (h - peak_hour) / 24.0)) / 2.0) ** g
        return low + swing * wave

    grid = np.linspace(0.0, 24.0, 2400, endpoint=False)
    under, over = 1e-3, 1e3  # the mean falls with g
    for _ in range(60):
        middle = (under * over) ** 0.5
        under, over = (middle, over) if float(shape(grid, middle).mean()) > 1.0 else (under, middle)
    return shape(hours, under)


@dataclass(frozen=True, slots=True)
class Daily:
    """A day's requests: mean per second, and its shape (see `daily`)."""

    mean: float
    low: float
    swing: float
    peak_hour: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a scenario's arrivals are made of."""

    trace: Load
    also: tuple[tuple[Load, float], ...] = ()  # at the same time, scaled so
    day: Daily | None = None

    def expected(self, factor: float) -> float:
        """About how many requests `load` brings."""
        others = sum(times * len(trace) for trace, times in self.also)
        mine = len(self.trace) if self.day is None else self.day.mean * DAY
        return factor * mine + others

    def load(self, factor: float, seed: int) -> Load:
        """The arrivals of one seed, the trace `factor` times."""
        if self.day is None:
            others = [scale(trace, times, seed + 1000 * n) for n, (trace, times) in enumerate(self.also, 1)]
            mine = scale(self.trace, factor, seed)
            return merged([mine, *others]) if others else mine
        day, whole = self.day, repeated(self.trace, DAY, seed)
        wanted = day.mean * daily(whole.at / 3600.0, day.low, day.swing, day.peak_hour)
        return followed(whole, factor * wanted * whole.span / len(whole), seed)
