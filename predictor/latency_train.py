"""Pure: from the rows of one engine to the model that is served (training time only).

Physics first, then trees on what it leaves over, then both compiled into monotone tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from joulegate.errors import UserError
from predictor.latency_data import Row, Sweep
from predictor.latency_fit import Array, Work, fit_latency, iteration_seconds, work_of
from predictor.latency_residual import Residual, fit_residual
from predictor.power_fit import fit_power
from predictor.table import TableModel, Trained
from predictor.table_build import Physics, build

LEAST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Fitted:
    """A served model beside the physics under it."""

    model: TableModel
    physics: Physics


def train(sweep: Sweep, clocks: Sequence[int], rng: np.random.Generator) -> Fitted:
    """Learn one engine. `clocks`: all it supports, in MHz; none: those that were swept.

    Raises UserError when there are too few rows to learn anything from.
    """
    rows = [row for row in sweep.rows if row.phase != "idle"]
    if len(rows) < LEAST_ROWS:
        raise UserError(
            f"{sweep.engine.name}: {len(rows)} usable rows are too few to learn from",
            f"sweep at least {LEAST_ROWS} points; a whole sweep has hundreds",
        )
    if (
        sum(not row.capped for row in rows) < LEAST_ROWS
    ):  # what the limit does is learned as what the clock does
        rows = [replace(row, capped=False) for row in rows]
    ladder = sorted(set(clocks) or {round(row.clock) for row in rows})
    max_clock = float(ladder[-1])
    latency, graphs = fit_latency(rows, max_clock)
    work = work_of(rows, max_clock, graphs)
    power = fit_power(rows, work, iteration_seconds(latency, work), latency, sweep.idle_watts)
    physics = Physics(latency, power, graphs)
    seconds, watts = physics.predict(work)
    time_residual = fit_residual(work, seconds, np.array([row.seconds for row in rows]), rng)
    power_residual = _power_residual(rows, work, watts, rng) if power else None
    idle = power.p_idle_w if power else (sweep.idle_watts or 0.0)
    tables = build(physics, time_residual, power_residual, work, ladder, idle)
    trained = Trained(
        engine=sweep.engine.name,
        rows=len(rows),
        ranges=_ranges(rows),
        time_error_p90=time_residual.error_p90,
        time_error_p95=time_residual.error_p95,
        power_error_p90=power_residual.error_p90 if power_residual else None,
        power_error_p95=power_residual.error_p95 if power_residual else None,
        residual_share=time_residual.share,
    )
    return Fitted(TableModel(tables, trained), physics)


def _power_residual(rows: Sequence[Row], work: Work, watts: Array, rng: np.random.Generator) -> Residual:
    known = np.array([bool(row.watts) for row in rows])
    observed = np.array([row.watts or 0.0 for row in rows])
    return fit_residual(work.take(known), watts[known], observed[known], rng)


def _ranges(rows: Sequence[Row]) -> Mapping[str, tuple[float, float]]:
    columns = {
        "batch": [float(row.batch.decoding) for row in rows],
        "context_tokens": [float(row.batch.context_tokens) for row in rows],
        "prefill_tokens": [float(row.batch.prefill_tokens) for row in rows],
        "clock_mhz": [row.clock for row in rows],
    }
    return {name: (min(values), max(values)) for name, values in columns.items()}
