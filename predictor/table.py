"""Pure: the learned model as it is served: two tables read by linear interpolation, in plain Python.

Axes: decoding sequences, context tokens, prompt tokens, and the clocks between which neither table bends.
The time table holds

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
from predictor.physics import padding

Corner: TypeAlias = "tuple[int, float]"  # where a row of a table (a value per column) begins, and its weight
Work: TypeAlias = "tuple[int, float, int]"  # of a batch: sequences decoding, context, prompt tokens


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
    """What `predictor.table_build` makes and a file holds.

    Tables are in order of (batch, context, tokens, column), single precision.
    """

    clocks: tuple[int, ...]  # every supported one, MHz, ascending
    columns: tuple[int, ...]  # those of them that the tables have a column for, ascending; both ends
    batch: tuple[float, ...]
    context: tuple[float, ...]
    tokens: tuple[float, ...]
    times: array[float]  # V, seconds
    watts: array[float]
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
        self._at = {float(clock): self._place(clock) for clock in tables.clocks}
        self._pads = padding(tables.graphs)
        # A governor asks about one batch at many clocks: where that batch lies is worked out once. By its
        # figures, not the object: whoever asks makes one and changes it between two questions.
        self._time_of: tuple[Work | None, list[Corner]] = (None, [])
        self._power_of: tuple[Work | None, list[Corner]] = (None, [])

    @property
    def clocks(self) -> tuple[MegaHertz, ...]:
        return self._clocks

    @property
    def idle_watts(self) -> Watts:
        return Watts(self.tables.idle_watts)

    def iteration_time(self, batch: Batch, clock: float) -> Seconds:
        """Seconds one iteration takes when `clock` MHz is asked for; linear between supported clocks."""
        known, corners = self._time_of
        work = (batch.decoding, batch.context_tokens, batch.prefill_tokens)
        if known != work:
            corners = self._corners(batch, self._padded(batch.decoding), grow=True)
            self._time_of = (work, corners)
        tables = self.tables
        seconds = _weigh(tables.times, corners, self._at.get(clock) or self._place(clock))
        return Seconds(seconds + tables.per_sequence * batch.decoding + self._attention(batch, clock))

    def watts(self, batch: Batch, clock: float) -> Watts:
        """Watts per GPU while that iteration runs."""
        known, corners = self._power_of
        work = (batch.decoding, batch.context_tokens, batch.prefill_tokens)
        if known != work:
            corners = self._corners(batch, float(batch.decoding), grow=False)
            self._power_of = (work, corners)
        return Watts(_weigh(self.tables.watts, corners, self._at.get(clock) or self._place(clock)))

    def curve(self, batch: Batch) -> tuple[list[float], list[float]]:
        """(seconds, watts) of one iteration at every supported clock, ascending."""
        tables = self.tables
        extra = tables.per_sequence * batch.decoding
        times = self._curve(tables.times, self._corners(batch, self._padded(batch.decoding), grow=True))
        seconds = [t + extra for t in times]
        if batch.prefill_attention:
            seconds = [
                t + self._attention(batch, clock) for t, clock in zip(seconds, tables.clocks, strict=True)
            ]
        return seconds, self._curve(tables.watts, self._corners(batch, float(batch.decoding), grow=False))

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

    def _attention(self, batch: Batch, clock: float) -> float:
        """Seconds of attention over new tokens; a clock that is not supported is as the nearest that is."""
        clocks = self.tables.clocks
        held = min(max(clock, clocks[0]), clocks[-1])
        return self.tables.attention * batch.prefill_attention * clocks[-1] / held

    def _place(self, clock: float) -> tuple[int, float]:
        """(column at or below a clock, how far it is to the next)."""
        columns = self.tables.columns
        low = max(0, bisect_right(columns, clock) - 1)
        if low == len(columns) - 1 or clock <= columns[low]:
            return low, 0.0
        return low, (clock - columns[low]) / (columns[low + 1] - columns[low])

    def _curve(self, table: array[float], corners: Sequence[Corner]) -> list[float]:
        """Of a table, at every supported clock."""
        values = _blend(table, corners, len(self.tables.columns))
        return [
            values[low] + (values[low + 1] - values[low]) * share if share else values[low]
            for low, share in self._at.values()
        ]

    def _corners(self, batch: Batch, decoding: float, *, grow: bool) -> list[Corner]:
        tables = self.tables
        wide, stride = len(tables.columns), len(tables.tokens)
        corners: list[Corner] = []
        along_tokens = _place(tables.tokens, batch.prefill_tokens, grow)
        along_context = _place(tables.context, batch.context_tokens, grow)
        for i, weight_b in _place(tables.batch, decoding, grow):
            for j, weight_k in along_context:
                row = (i * len(tables.context) + j) * stride
                weight = weight_b * weight_k
                corners.extend(((row + k) * wide, weight * weight_n) for k, weight_n in along_tokens)
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


def _weigh(table: array[float], corners: Sequence[Corner], place: tuple[int, float]) -> float:
    column, share = place
    total = 0.0
    for row, weight in corners:
        total += table[row + column] * weight
    if not share:
        return total
    above = 0.0
    for row, weight in corners:
        above += table[row + column + 1] * weight
    return total + (above - total) * share


def _blend(table: array[float], corners: Sequence[Corner], wide: int) -> list[float]:
    (row, weight), *rest = corners
    total = [value * weight for value in table[row : row + wide]]
    for row, weight in rest:
        total = [value + other * weight for value, other in zip(total, table[row : row + wide], strict=True)]
    return total
