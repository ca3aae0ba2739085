"""Pure: physics and residuals compiled into the tables that `predictor.table` reads (training time only).

Knots are put where the physics bends, greedily, until a straight line between neighbours is within half a
percent. The residuals are only asked inside the range that was swept. Then the time table is made
monotone, what was measured first. Last, the clocks between which neither table bends are left out.
"""

from __future__ import annotations  # array is generic for type checkers only

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from joulegate.engine_profile import PowerCoefficients
from predictor.latency_fit import Array, Coefficients, Work, iteration_seconds, pad
from predictor.latency_residual import Residual
from predictor.power_fit import UNCAPPED, watts_of
from predictor.table import Tables

KNOTS = 14  # at most, on each axis of work
BEND = 0.005  # relative error of a chord that is let pass
CANDIDATES = 96
BEYOND = 2.0  # times the largest value swept: how far the axes go, on physics alone
COLUMNS = 32  # clocks, at most
CLOCK_BEND = 0.001  # relative error of a chord between two of them that is let pass
RISE = 3e-7  # relative, per knot: rounding to single precision never makes more work look faster
LEAST = 1e-9  # s
POWER_STEPS = 64  # clocks tried for the highest that the board's limit allows


@dataclass(frozen=True, slots=True)
class Physics:
    """Both halves of one fitted engine."""

    latency: Coefficients
    power: PowerCoefficients | None
    graphs: tuple[int, ...]

    def predict(self, work: Work) -> tuple[Array, Array]:
        """(seconds, watts) with the board's power limit applied; watts are 0 where power is not known."""
        if self.power is None:
            return iteration_seconds(self.latency, work), np.zeros_like(work.x)
        x = self._within_limit(work, self.power)
        held = replace(work, x=x)
        seconds = iteration_seconds(self.latency, held)
        watts = np.minimum(self.power.tdp_w, watts_of(self.power, held, seconds))
        return seconds, watts

    def _within_limit(self, work: Work, power: PowerCoefficients) -> Array:
        """The highest share of the clock, at most the one asked for, that fits the limit."""
        x = work.x.copy()
        if power.tdp_w >= UNCAPPED:
            return x
        for share in np.linspace(1.0, float(work.x.min()), POWER_STEPS):
            at = replace(work, x=np.full_like(x, share))
            over = watts_of(power, at, iteration_seconds(self.latency, at)) > power.tdp_w
            x = np.where(over, np.minimum(x, share - (1.0 - work.x.min()) / POWER_STEPS), x)
        return np.asarray(np.maximum(x, work.x.min()))


@dataclass(frozen=True, slots=True)
class Swept:
    """Distinct values of each kind of work in the rows learned from, ascending."""

    batch: Array
    context: Array
    tokens: Array

    @property
    def axes(self) -> tuple[Array, Array, Array]:
        return self.batch, self.context, self.tokens


def _swept(work: Work) -> Swept:
    return Swept(np.unique(work.batch), np.unique(work.context), np.unique(work.tokens))


def build(
    physics: Physics,
    time_residual: Residual,
    power_residual: Residual | None,
    rows: Work,
    clocks: Sequence[int],
    idle_watts: float,
) -> Tables:
    """Tables over every clock in `clocks` (MHz, ascending) and twice the work of `rows`, what was learned."""
    swept = _swept(rows)
    axes = _axes(physics, swept, clocks)
    shape = (*(len(axis) for axis in axes), len(clocks))
    work = _grid(physics, axes, clocks)
    inside = _grid(
        physics, [np.minimum(axis, values[-1]) for axis, values in zip(axes, swept.axes, strict=True)], clocks
    )
    seconds, watts = physics.predict(work)
    if time_residual.share:
        seconds = seconds * np.exp(time_residual.advice(inside, physics.predict(inside)[0]))
    if power_residual is not None and power_residual.share:
        watts = watts * np.exp(power_residual.advice(inside, physics.predict(inside)[1]))
    c = physics.latency
    per_sequence = c.h1_s_per_seq + c.h2_s_per_token
    linear = per_sequence * work.batch + c.pc2_s_per_token2 * work.attention / work.x
    times = monotone(np.maximum(LEAST, seconds - linear).reshape(shape), _touched(axes, rows))
    steady = _never_falling(watts.reshape(shape))
    columns = columns_of(np.array(clocks, dtype=np.float64), (times, steady))
    return Tables(
        clocks=tuple(int(clock) for clock in clocks),
        columns=tuple(int(clocks[column]) for column in columns),
        batch=_floats(axes[0]),
        context=_floats(axes[1]),
        tokens=_floats(axes[2]),
        times=_single(times[..., columns]),
        watts=_single(steady[..., columns]),
        per_sequence=per_sequence,
        attention=c.pc2_s_per_token2,
        graphs=physics.graphs,
        idle_watts=idle_watts,
    )


def monotone(table: Array, touched: npt.NDArray[np.bool_]) -> Array:
    """The nearest thing that rises along every axis but the last, and falls along the last (the clock).

    The geometric mean of its envelopes is monotone, and a monotone table stays as it is. Where rows lie
    (`touched`, without the last axis) only such places are weighed against each other: what was measured is
    not moved for the sake of what is made up beside it. The rest is then held between them.
    """
    known = touched[..., None]
    above, below = _envelopes(np.where(known, table, 0.0), np.where(known, table, np.inf))
    measured = np.sqrt(above * np.where(known, below, 0.0))
    least, most = _envelopes(measured, np.where(known, measured, np.inf))
    above, below = _envelopes(table, table)
    between = np.clip(np.sqrt(above * below), least, most)
    for axis in range(table.ndim - 1):
        steps = np.arange(table.shape[axis]).reshape([-1 if a == axis else 1 for a in range(table.ndim)])
        between = between * (1.0 + RISE * steps)
    return np.asarray(between)


def _envelopes(low: Array, high: Array) -> tuple[Array, Array]:
    """The least monotone table above `low`, and the greatest below `high`.

    They are the running maximum from the small, fast corner, and the running minimum from the other end.
    """
    above, below = low[..., ::-1].copy(), high[..., ::-1].copy()
    for axis in range(low.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return above[..., ::-1], below[..., ::-1]


def _touched(axes: Sequence[Array], rows: Work) -> npt.NDArray[np.bool_]:
    """Which places of the grid a row lies at, or between."""
    touched = np.zeros([len(axis) for axis in axes], np.bool_)
    sides = []
    for axis, values in zip(axes, (rows.padded, rows.context, rows.tokens), strict=True):
        above = np.searchsorted(axis, values)
        sides.append((np.where(axis[above] == values, above, above - 1), above))
    for corner in product(*sides):
        touched[corner] = True
    return touched


def _never_falling(watts: Array) -> Array:
    above = np.maximum.accumulate(watts, axis=-1)
    below = np.minimum.accumulate(watts[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray((above + below) / 2.0)


def _axes(physics: Physics, swept: Swept, clocks: Sequence[int]) -> list[Array]:
    """Knots of batch, context and tokens; one knot at 0 where a kind of work never occurred."""
    x = np.array([clocks[0], clocks[len(clocks) // 2], clocks[-1]]) / clocks[-1]

    def along(axis: int, share: float) -> Callable[[Array], Array]:
        def seconds(values: Array) -> Array:
            point = [np.full(len(values) * len(x), share * other[-1]) for other in swept.axes]
            point[axis] = np.repeat(values, len(x))
            work = _work(physics, point[0], point[1], point[2], np.tile(x, len(values)))
            return np.reshape(iteration_seconds(physics.latency, work), (len(values), len(x)))

        return seconds

    axes = []
    for axis, values in enumerate(swept.axes):
        if values[-1] == 0.0:
            axes.append(np.zeros(1))
            continue
        dense = np.concatenate([[0.0], values, np.geomspace(1.0, values[-1], CANDIDATES).round()])
        if axis == 0:
            dense = pad(dense, physics.graphs)
        dense = np.append(np.unique(dense), BEYOND * max(values[-1], dense.max()))
        axes.append(_knots(dense, values, (along(axis, 0.0), along(axis, 0.5))))
    return axes


def _knots(dense: Array, values: Array, curves: Sequence[Callable[[Array], Array]]) -> Array:
    """Knots out of `dense` such that chords stay within BEND of every curve; at most KNOTS.

    Where few values were swept they are knots themselves: that is where the residual was measured.
    """
    times = np.concatenate([curve(dense) for curve in curves], axis=1)
    if len(values) <= KNOTS - 2:
        chosen = {0, len(dense) - 1, *(int(i) for i in np.searchsorted(dense, values))}
    else:
        chosen = {0, len(dense) - 1, *(int(i) for i in np.linspace(0, len(dense) - 2, KNOTS // 2))}
    while len(chosen) < KNOTS:
        at = sorted(chosen)
        chords = np.stack([np.interp(dense, dense[at], column[at]) for column in times.T], axis=1)
        error = np.abs(chords / times - 1.0).max(axis=1)
        worst = int(error.argmax())
        if error[worst] < BEND or worst in chosen:
            break
        chosen.add(worst)
    return np.asarray(dense[sorted(chosen)])


def _grid(physics: Physics, axes: Sequence[Array], clocks: Sequence[int]) -> Work:
    x = np.array(clocks, dtype=np.float64) / clocks[-1]
    batch, context, tokens, share = (m.ravel() for m in np.meshgrid(*axes, x, indexing="ij"))
    return _work(physics, batch, context, tokens, share)


def _work(physics: Physics, batch: Array, context: Array, tokens: Array, x: Array) -> Work:
    return Work(batch, pad(batch, physics.graphs), context, tokens, tokens * tokens / 2.0, x)


def _floats(axis: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in axis)


def columns_of(clocks: Array, tables: Sequence[Array]) -> list[int]:
    """Places in `clocks`, at most COLUMNS, such that chords stay within CLOCK_BEND of every table."""
    rows = np.concatenate([table.reshape(-1, len(clocks)) for table in tables])
    chosen = sorted({0, len(clocks) - 1})
    while len(chosen) < COLUMNS:
        low = np.clip(
            np.searchsorted(chosen, np.arange(len(clocks)), "right") - 1, 0, max(0, len(chosen) - 2)
        )
        below, above = np.array(chosen)[low], np.array(chosen)[np.minimum(low + 1, len(chosen) - 1)]
        share = (clocks - clocks[below]) / np.maximum(clocks[above] - clocks[below], 1.0)
        chords = rows[:, below] + (rows[:, above] - rows[:, below]) * share
        error = (np.abs(chords - rows) / np.maximum(rows, LEAST)).max(axis=0)
        worst = int(error.argmax())
        if error[worst] < CLOCK_BEND:
            break
        chosen = sorted({*chosen, worst})
    return chosen


def _single(table: Array) -> array[float]:
    return array("f", table.astype(np.float32).tobytes())
