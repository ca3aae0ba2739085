"""Pure: the power half of engine-profile/1 fitted to rows of a sweep (training time only: needs scipy).

Shares of the peaks come from the latency fit: memory is busy (m0 + m1*K)/t of the time, the arithmetic
units (pc1*(B+N) + pc2*A)/(x*t). With the clock law (vmin, knee, u_sat, s_fixed) given, watts are linear
in what is left (static, HBM, floor, memory, compute): non-negative least squares inside, a grid and then
a simplex over the law outside. Relative errors, reweighted so that odd readings count less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize, nnls

from joulegate.engine_profile import LatencyCoefficients, PowerCoefficients
from predictor.latency_data import Row
from predictor.latency_fit import Array, Work

VMIN = (0.4, 0.55, 0.65, 0.74, 0.83, 0.92)
KNEE = (0.15, 0.35, 0.5, 0.62, 0.74, 0.86)
SATURATION = (0.3, 0.9)
FIXED = (0.0, 0.4)
ROBUST = 0.03
UNCAPPED = 1e9  # W: no row was held by the board's limit, so none is known


@dataclass(frozen=True, slots=True)
class ClockLaw:
    vmin: float
    knee: float
    u_sat: float
    fixed: float

    def scale(self, x: Array) -> Array:
        """g(x): what dynamic power keeps of its full value at x."""
        voltage = np.maximum(self.vmin, 1.0 - (1.0 - self.vmin) * (1.0 - x) / (1.0 - self.knee))
        return np.asarray(self.fixed + (1.0 - self.fixed) * x * voltage**2)


def fit_power(
    rows: Sequence[Row], work: Work, seconds: Array, latency: LatencyCoefficients, idle_watts: float | None
) -> PowerCoefficients | None:
    """Watts per GPU from rows with power readings; None with fewer than four of them below the limit.

    `seconds` is the fitted iteration time of every row: what will be known when predicting, too.
    """
    usable = np.array([row.watts is not None and row.watts > 0.0 and not row.capped for row in rows])
    if usable.sum() < 4:
        return None
    watts = np.array([row.watts or 0.0 for row in rows])
    held = [row.watts for row in rows if row.capped and row.watts is not None]
    fit = _Fit(work.take(usable), seconds[usable], watts[usable], latency)
    law, parts = fit.best()
    return PowerCoefficients(
        p_idle_w=float(watts[usable].min()) if idle_watts is None else idle_watts,
        p_static_w=parts[0],
        hm_w=parts[1],
        d0_w=parts[2],
        dm_w=parts[3],
        dc_w=parts[4],
        u_sat=law.u_sat,
        s_fixed_share=law.fixed,
        vmin=law.vmin,
        knee=law.knee,
        us_w_s=latency.m0_s,
        us_kv_s=latency.m1_s_per_ctx_token,
        us_tok_s=_per_token(latency),
        us_att_s=latency.pc2_s_per_token2,
        tdp_w=float(np.median(held)) if held else UNCAPPED,
        p_off_owned_w=0.0,
        p_start_w=0.0,
    )


def watts_of(c: PowerCoefficients, work: Work, seconds: Array) -> Array:
    """The formula of `predictor.physics`, over arrays; the board's power limit ignored."""
    memory, compute = _shares(work, seconds, c.us_w_s, c.us_kv_s, c.us_tok_s, c.us_att_s)
    g = ClockLaw(c.vmin, c.knee, c.u_sat, c.s_fixed_share).scale(work.x)
    dynamic = c.d0_w + c.dm_w * memory + c.dc_w * np.minimum(1.0, compute / c.u_sat)
    return np.asarray(c.p_static_w + c.hm_w * memory + dynamic * g)


def _per_token(latency: LatencyCoefficients) -> float:
    return latency.pc1_s_per_token or latency.c1_s_per_seq


def _shares(work: Work, seconds: Array, w: float, kv: float, tok: float, att: float) -> tuple[Array, Array]:
    memory = (w + kv * work.context) / seconds
    compute = (tok * (work.batch + work.tokens) + att * work.attention) / (work.x * seconds)
    return memory, compute


class _Fit:
    def __init__(self, work: Work, seconds: Array, watts: Array, latency: LatencyCoefficients) -> None:
        c = latency
        self.memory, self.compute = _shares(
            work, seconds, c.m0_s, c.m1_s_per_ctx_token, _per_token(c), c.pc2_s_per_token2
        )
        self.x, self.watts = work.x, watts

    def best(self) -> tuple[ClockLaw, list[float]]:
        even = np.ones_like(self.watts)
        law = min(
            (ClockLaw(*choice) for choice in product(VMIN, KNEE, SATURATION, FIXED)),
            key=lambda law: self.misfit(law, self.parts(law, even)),
        )
        weights = even
        for _ in range(2):
            law = self._refine(law, weights)
            error = self.relative(law, self.parts(law, weights))
            weights = 1.0 / np.sqrt(1.0 + (error / ROBUST) ** 2)
        return law, [float(part) for part in self.parts(law, weights)]

    def parts(self, law: ClockLaw, weights: Array) -> Array:
        """Watts of (static, HBM, floor, memory, compute), none negative."""
        rows = self.columns(law) / self.watts[:, None] * weights[:, None]
        # a whisper of ridge: columns that a sweep cannot tell apart share what they explain
        gram = rows.T @ rows + 1e-9 * np.eye(5) * len(rows)
        root = np.linalg.cholesky(gram)
        solution, _ = nnls(root.T, np.linalg.solve(root, rows.T @ weights))
        return np.asarray(solution)

    def columns(self, law: ClockLaw) -> Array:
        g = law.scale(self.x)
        busy = np.minimum(1.0, self.compute / law.u_sat)
        return np.stack([np.ones_like(g), self.memory, g, g * self.memory, g * busy], axis=1)

    def relative(self, law: ClockLaw, parts: Array) -> Array:
        return np.asarray(self.columns(law) @ parts / self.watts - 1.0)

    def misfit(self, law: ClockLaw, parts: Array) -> float:
        error = self.relative(law, parts)
        return float(np.sum(np.sqrt(1.0 + (error / ROBUST) ** 2) - 1.0))

    def _refine(self, law: ClockLaw, weights: Array) -> ClockLaw:
        def at(point: Array) -> ClockLaw:
            vmin, knee, u_sat, fixed = np.clip(point, (0.2, 0.02, 0.05, 0.0), (0.99, 0.97, 1.5, 0.8))
            return ClockLaw(float(vmin), float(knee), float(u_sat), float(fixed))

        def cost(point: Array) -> float:
            return self.misfit(at(point), self.parts(at(point), weights))

        found = minimize(
            cost,
            np.array([law.vmin, law.knee, law.u_sat, law.fixed]),
            method="Nelder-Mead",
            options={"maxfev": 160, "xatol": 0.005, "fatol": 1e-3},
        )
        return at(found.x)
