"""Pure: arrivals for a simulation: traces scaled and cut, and constant-rate load made from them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.units import Seconds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SPREAD = 30.0  # seconds around the original at which further copies of a row arrive


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of arrival; seconds from the start, tokens."""

    at: Floats
    input: Ints
    output: Ints
    span: Seconds  # of the whole trace, idle ends included

    def __len__(self) -> int:
        return len(self.at)


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
