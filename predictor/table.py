"""Pure: the learned model as it is served: two tables read by linear interpolation, in plain Python.

Axes: decoding sequences, context tokens, prompt tokens, and every supported clock. The time table holds

    V = t - h*B - a*A0(N)/x        A0(N) = N^2/2, the attention work of one fresh prompt

so that t = V(pad(B), K, N, clock) + h*B + a*A/x keeps the steps of CUDA graph padding and any attention
work. V is monotone along every axis when it is built, and interpolation between monotone corners is
monotone: no clock is ever faster than a higher one, no larger batch, context or prompt ever faster than a
smaller one. Beyond the last knot (twice what was swept, by physics) time grows in proportion, which errs
towards slow. The power table holds watts, never falling with the clock, and stays at its edge.

All clocks of one batch cost about as much as a dozen single calls: `curve`.
"""

from __future__ import annotations  # array is generic for type checkers only

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from joulegate.domain import Batch
from joulegate.units import MegaHertz, Seconds, Watts

Corner: TypeAlias = "tuple[array[float], float]"  # one row of a table (a value per clock) and its weight


@dataclass(frozen=True, slots=True)
class Trained:
    """Where a model comes from and how far to trust it."""

    engine: str
    rows: int
    ranges: Mapping[str, tuple[float, float]]  # of batch, context_tokens, prefill_tokens, clock_mhz
    time_error_p90: float  # |log(observed / predicted)| on rows not learned
    time_error_p95: float
    power_error_p90: float | None  # None: no power readings
    power_error_p95: float | None
    residual_share: float  # of the trees' advice that is in the table: 0 is physics alone

    @property
    def power_known(self) -> bool:
        return self.power_error_p95 is not None


@dataclass(frozen=True, slots=True)
class Tables:
    """What `predictor.table_build` makes and a file holds. Rows are in order of (batch, context, tokens)."""

    clocks: tuple[int, ...]  # MHz, ascending
    batch: tuple[float, ...]
    context: tuple[float, ...]
    tokens: tuple[float, ...]
    times: tuple[array[float], ...]  # V in seconds, per clock
    watts: tuple[array[float], ...]
    per_sequence: float  # h, seconds
    attention: float  # a, seconds per token^2 at the highest clock
    graphs: tuple[int, ...]
    idle_watts: float


class TableModel:
    """`EngineModel` from tables. Immutable but for the corners of the last batch asked about."""

    def __init__(self, tables: Tables, trained: Trained) -> None:
        self.tables = tables
        self.trained = trained
        self._clocks = tuple(MegaHertz(clock) for clock in tables.clocks)
        self._at: dict[float, int] = {clock: index for index, clock in enumerate(tables.clocks)}
        self._x = [clock / tables.clocks[-1] for clock in tables.clocks]
        self._pads = _padding(tables.graphs)
        # A governor asks about one batch at many clocks: where that batch lies is worked out once.
        self._time_of: tuple[Batch | None, list[Corner]] = (None, [])
        self._power_of: tuple[Batch | None, list[Corner]] = (None, [])

    @property
    def clocks(self) -> tuple[MegaHertz, ...]:
        return self._clocks

    @property
    def idle_watts(self) -> Watts:
        return Watts(self.tables.idle_watts)

    def iteration_time(self, batch: Batch, clock: float) -> Seconds:
        """Seconds one iteration takes when `clock` MHz is asked for; linear between supported clocks."""
        known, corners = self._time_of
        if known is not batch:
            corners = self._corners(self.tables.times, batch, self._padded(batch.decoding), grow=True)
            self._time_of = (batch, corners)
        extra = self.tables.per_sequence * batch.decoding
        attention = self.tables.attention * batch.prefill_attention
        index = self._at.get(clock)
        if index is not None:
            return Seconds(_weigh(corners, index) + extra + attention / self._x[index])
        low, share = self._between(clock)
        below = _weigh(corners, low) + attention / self._x[low]
        above = _weigh(corners, low + 1) + attention / self._x[low + 1]
        return Seconds(below + (above - below) * share + extra)

    def watts(self, batch: Batch, clock: float) -> Watts:
        """Watts per GPU while that iteration runs."""
        known, corners = self._power_of
        if known is not batch:
            corners = self._corners(self.tables.watts, batch, float(batch.decoding), grow=False)
            self._power_of = (batch, corners)
        index = self._at.get(clock)
        if index is not None:
            return Watts(_weigh(corners, index))
        low, share = self._between(clock)
        below, above = _weigh(corners, low), _weigh(corners, low + 1)
        return Watts(below + (above - below) * share)

    def curve(self, batch: Batch) -> tuple[list[float], list[float]]:
        """(seconds, watts) of one iteration at every supported clock, ascending."""
        times = _blend(self._corners(self.tables.times, batch, self._padded(batch.decoding), grow=True))
        extra = self.tables.per_sequence * batch.decoding
        attention = self.tables.attention * batch.prefill_attention
        seconds = [t + extra + attention / x for t, x in zip(times, self._x, strict=True)]
        return seconds, _blend(self._corners(self.tables.watts, batch, float(batch.decoding), grow=False))

    def covers(self, batch: Batch) -> bool:
        """Whether the model has seen work like this: outside, keep default clocks."""
        ranges = self.trained.ranges
        return (
            batch.decoding <= ranges["batch"][1]
            and batch.context_tokens <= ranges["context_tokens"][1]
            and batch.prefill_tokens <= ranges["prefill_tokens"][1]
        )

    def _padded(self, decoding: int) -> float:
        return float(self._pads[decoding] if decoding < len(self._pads) else decoding)

    def _between(self, clock: float) -> tuple[int, float]:
        clocks = self.tables.clocks
        if len(clocks) == 1:
            return -1, 0.0  # one clock: both neighbours are it
        low = min(max(0, bisect_right(clocks, clock) - 1), len(clocks) - 2)
        share = (clock - clocks[low]) / (clocks[low + 1] - clocks[low])
        return low, min(1.0, max(0.0, share))

    def _corners(
        self, rows: Sequence[array[float]], batch: Batch, decoding: float, *, grow: bool
    ) -> list[Corner]:
        tables = self.tables
        stride = len(tables.tokens)
        corners: list[Corner] = []
        along_tokens = _place(tables.tokens, batch.prefill_tokens, grow)
        along_context = _place(tables.context, batch.context_tokens, grow)
        for i, weight_b in _place(tables.batch, decoding, grow):
            for j, weight_k in along_context:
                row = (i * len(tables.context) + j) * stride
                weight = weight_b * weight_k
                corners.extend((rows[row + k], weight * weight_n) for k, weight_n in along_tokens)
        return corners


def search(model: TableModel, batch: Batch, limit: Seconds) -> MegaHertz:
    """The clock of least energy per iteration among those within `limit` seconds; the highest if none is."""
    seconds, watts = model.curve(batch)
    best, least = len(seconds) - 1, float("inf")
    for index, t in enumerate(seconds):
        if t <= limit and t * watts[index] < least:
            best, least = index, t * watts[index]
    return model.clocks[best]


def _place(knots: Sequence[float], value: float, grow: bool) -> tuple[tuple[int, float], ...]:
    """(knot, weight) around a value. Weights are never negative: that keeps every axis monotone."""
    last = len(knots) - 1
    if value >= knots[last]:
        return ((last, value / knots[last] if grow and knots[last] > 0.0 else 1.0),)
    if value <= knots[0]:
        return ((0, 1.0),)
    low = bisect_right(knots, value) - 1
    share = (value - knots[low]) / (knots[low + 1] - knots[low])
    return ((low, 1.0 - share), (low + 1, share)) if share else ((low, 1.0),)


def _weigh(corners: Sequence[Corner], index: int) -> float:
    total = 0.0
    for row, weight in corners:
        total += row[index] * weight
    return total


def _blend(corners: Sequence[Corner]) -> list[float]:
    (first, weight), *rest = corners
    total = [value * weight for value in first]
    for row, share in rest:
        total = [value + other * share for value, other in zip(total, row, strict=True)]
    return total


def _padding(graphs: Sequence[int]) -> list[int]:
    sizes = [0]
    for graph in graphs:
        sizes.extend([graph] * (graph - len(sizes) + 1))
    return sizes
