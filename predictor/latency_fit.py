"""Pure: the physics of engine-profile/1 fitted to rows of a sweep (training time only: needs scipy).

Beyond that format an iteration that reads a prompt costs the host a fixed time more: it is split
into tokens, scheduled, and its first token sent.

Latency: bounded least squares on log seconds, soft-L1, from several starts, since the p-norm has flat
valleys. Robust, because sweeps contain runs that ended early or stalled. Rows whose clock was set by the
board's power limit say nothing about the clock they asked for: they are left out, and tell the limit
instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from joulegate.engine_profile import LatencyCoefficients
from predictor.latency_data import Row

Array = npt.NDArray[np.float64]
ROBUST = 0.03  # log error from which a row counts less
USUAL_P = 4.0  # the p-norm where rows do not tell it
BELIEF = 0.02  # log error that a p of e times the usual one is worth
STARTS = ((2.0, 0.3), (3.0, 0.7), (7.0, 0.5))  # (p, share of the time that is weight reads)
NO_GRAPHS: tuple[int, ...] = ()
VLLM_GRAPHS = (1, 2, 4, *range(8, 257, 8), 512)
WORTH_PADDING = 0.97  # graph padding is believed when it leaves less than this share of the misfit
LOWER = (1.0, *(0.0,) * 10)
UPPER = (12.0, *(np.inf,) * 10)


@dataclass(frozen=True, slots=True)
class Coefficients(LatencyCoefficients):
    """An engine profile's, and what the host takes for an iteration that reads prompts at all."""

    prompt_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """Columns of work and clock; every array has one entry per row."""

    batch: Array
    padded: Array
    context: Array
    tokens: Array
    attention: Array
    x: Array  # clock / highest clock

    def take(self, mask: npt.NDArray[np.bool_]) -> "Work":
        return Work(
            self.batch[mask],
            self.padded[mask],
            self.context[mask],
            self.tokens[mask],
            self.attention[mask],
            self.x[mask],
        )


def work_of(rows: Sequence[Row], max_clock: float, graphs: Sequence[int]) -> Work:
    batch = np.array([row.batch.decoding for row in rows], dtype=np.float64)
    return Work(
        batch=batch,
        padded=pad(batch, graphs),
        context=np.array([row.batch.context_tokens for row in rows], dtype=np.float64),
        tokens=np.array([row.batch.prefill_tokens for row in rows], dtype=np.float64),
        attention=np.array([row.batch.prefill_attention for row in rows], dtype=np.float64),
        x=np.array([row.clock for row in rows], dtype=np.float64) / max_clock,
    )


def pad(batch: Array, graphs: Sequence[int]) -> Array:
    """The CUDA graph size each batch runs at; itself above the last, or without graphs."""
    if not graphs:
        return batch
    sizes = np.array([0, *graphs], dtype=np.float64)
    at = np.searchsorted(sizes, batch)
    return np.where(at < len(sizes), sizes[np.minimum(at, len(sizes) - 1)], batch)


def iteration_seconds(c: Coefficients, work: Work) -> Array:
    """The formula of `predictor.physics` and the host's time for prompts; the power limit ignored."""
    t_cmp = (c.c0_s + c.c1_s_per_seq * work.padded + c.pc1_s_per_token * work.tokens) / work.x
    t_gemm = (c.m0_s**c.p + t_cmp**c.p) ** (1.0 / c.p)
    reads = c.m1_s_per_ctx_token * work.context
    attention = c.pc2_s_per_token2 * work.attention / work.x
    host = c.h0_s + c.h1_s_per_seq * work.batch + c.h2_s_per_token * (work.batch + work.tokens)
    return np.asarray(t_gemm + reads + attention + host + c.prompt_s * (work.tokens > 0.0))


def fit_latency(rows: Sequence[Row], max_clock: float) -> tuple[Coefficients, tuple[int, ...]]:
    """(coefficients, CUDA graph sizes believed). Needs at least four rows not capped, else ValueError."""
    usable = [row for row in rows if not row.capped]
    if len(usable) < 4:
        raise ValueError(f"{len(usable)} rows below the power limit: too few to fit")
    seconds = np.array([row.seconds for row in usable])
    plain, plain_cost = _fit(work_of(usable, max_clock, NO_GRAPHS), seconds)
    graphs = work_of(usable, max_clock, VLLM_GRAPHS)
    if np.array_equal(graphs.padded, graphs.batch):
        return plain, NO_GRAPHS  # these batches need no padding: nothing to tell apart
    padded, padded_cost = _fit(graphs, seconds)
    if padded_cost < WORTH_PADDING * plain_cost:
        return padded, VLLM_GRAPHS
    return plain, NO_GRAPHS


def _fit(work: Work, seconds: Array) -> tuple[Coefficients, float]:
    scales = _scales(work, float(np.median(seconds)))
    best: tuple[float, Array] | None = None

    def misfit(theta: Array) -> Array:
        error = np.log(iteration_seconds(_coefficients(theta, scales), work) / seconds)
        return np.append(error, BELIEF * np.log(theta[0] / USUAL_P))

    for p, share in STARTS:
        start = np.array([p, share, 0.05, 0.9 - share, 0.2, 0.3, 0.05, 0.05, 0.05, 0.02, 0.05])
        found = least_squares(
            misfit,
            start,
            bounds=(LOWER, UPPER),
            x_scale=np.maximum(start, 0.05),
            loss="soft_l1",
            f_scale=ROBUST,
            ftol=1e-6,
            xtol=1e-6,
            max_nfev=100,
        )
        if best is None or found.cost < best[0]:
            best = (float(found.cost), found.x)
    assert best is not None
    return _coefficients(best[1], scales), best[0]


def _scales(work: Work, seconds: float) -> Array:
    """Seconds each coefficient stands for when its unknown is 1: every unknown is then of order one.

    Work that never occurs gets scale 0, and so a coefficient of 0.
    """

    def per(column: Array) -> float:
        top = float(column.max())
        return seconds / top if top > 0.0 else 0.0

    both = work.batch + work.tokens
    mixed = work.tokens.any()
    return np.array(
        [
            1.0,
            seconds,
            per(work.context),
            seconds,
            per(work.batch),
            per(work.tokens),
            per(work.attention),
            seconds,
            per(work.batch),
            per(both) if mixed else 0.0,
            seconds if mixed and not work.tokens.all() else 0.0,
        ]
    )


def _coefficients(theta: Array, scales: Array) -> Coefficients:
    return Coefficients(*(float(value) for value in theta * scales))
