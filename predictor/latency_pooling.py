"""Pure: what the physics leaves over, pooled over operating points (training time only).

A load that was measured at a few clocks has an offset and a slope of its own over the clock; either may be
noise. They are shrunk towards those of like loads, and all towards none, as far as the rows themselves say
(partial pooling). So is a bend over the clock that the physics does not have; another is shared widely. All
of it is a Gaussian process on log(observed / physics) with the kernel

    (near * exp(-d^2/2) + (1 - near) * [same load]) * (offset^2 + slope^2 * g g' + turn^2 * b)
        + bend^2 * exp(-(d / WIDE)^2/2) * b        b = exp(-(g - g')^2/(2 TURN^2))

where g is ln x and d counts `REACH` doublings of the work, plus noise. The scales are those of greatest
marginal likelihood on a grid, climbed one scale at a time (C. E. Rasmussen and C. K. I. Williams, "Gaussian
Processes for Machine Learning", 2006, §2.2, §5.4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from scipy.linalg import solve_triangular

from predictor.latency_fit import Array, Work

MOST_ROWS = 400  # beyond, trees have enough to learn from, and the algebra gets slow
LEAST_ROWS = 8
REACH = 1.5  # doublings of batch, context or prompt within which loads are alike
TURN = 0.3  # of ln x, within which a bend may turn
WIDE = 4.0  # times REACH: loads that share one
GRID: Mapping[str, Sequence[float]] = {  # of each scale
    "offset": (0.01, 0.03, 0.08, 0.2, 0.5),  # log
    "slope": (0.01, 0.05, 0.15, 0.4),  # per unit of ln x
    "bend": (0.0, 0.03, 0.1),  # log
    "noise": (0.005, 0.01, 0.02, 0.04),  # log
    "near": (0.3, 0.8),
    "turn": (0.0, 0.01, 0.03, 0.08),  # log
}


@dataclass(frozen=True, slots=True)
class Scales:
    offset: float
    slope: float
    bend: float
    noise: float
    near: float  # share of a load's own that is shared with like loads
    turn: float


START = Scales(offset=0.03, slope=0.05, bend=0.03, noise=0.01, near=0.3, turn=0.01)


@dataclass(frozen=True, slots=True)
class Pooling:
    """Fitted: where rows lie, and how much each says about other places."""

    places: Array  # (n, 3) doublings of the work
    slowness: Array  # (n,) ln x
    pull: Array  # (n,) covariance^-1 of what the rows left over
    scales: Scales

    def advice(self, work: Work) -> Array:
        # A table asks the same loads at every clock: each load is compared with the rows once.
        scales, pull = self.scales, self.pull
        loads, which = np.unique(_places(work), axis=0, return_inverse=True)
        clocks, at = np.unique(np.log(work.x), return_inverse=True)
        apart = _apart(loads, self.places)
        alike = _alike(apart, scales.near)
        offset = scales.offset**2 * (alike @ pull)
        slope = scales.slope**2 * (alike @ (self.slowness * pull))
        bends = scales.bend**2 * _wide(apart) + scales.turn**2 * alike
        bend = (bends * pull) @ _turned(self.slowness, clocks)
        return np.asarray(offset[which] + slope[which] * clocks[at] + bend[which, at])


def fit_pooling(work: Work, left: Array) -> tuple[Pooling, Array] | None:
    """(the pooling of what is left, what it says of each row without that row); None: too few or too many."""
    if not LEAST_ROWS <= len(left) <= MOST_ROWS:
        return None
    places, slowness = _places(work), np.log(work.x)
    apart = _apart(places, places)
    wide, falling, turned = _wide(apart), np.outer(slowness, slowness), _turned(slowness, slowness)

    def covariance_of(scales: Scales) -> Array:
        own = scales.offset**2 + scales.slope**2 * falling + scales.turn**2 * turned
        covariance = _alike(apart, scales.near) * own + scales.bend**2 * wide * turned
        covariance[np.diag_indices(len(left))] += scales.noise**2
        return np.asarray(covariance)

    def likelihood(scales: Scales) -> float:
        root = np.linalg.cholesky(covariance_of(scales))
        white = solve_triangular(root, left, lower=True, check_finite=False)
        return -0.5 * float(white @ white) - float(np.log(root.diagonal()).sum())

    scales = _climbed(likelihood)
    precision = np.linalg.inv(covariance_of(scales))
    pull = precision @ left
    unseen = left - pull / precision.diagonal()
    return Pooling(places, slowness, pull, scales), unseen


def _climbed(likelihood: Callable[[Scales], float]) -> Scales:
    """The scales on GRID that no change of a single one makes likelier."""
    best, most, before = START, likelihood(START), -inf
    while most > before:
        before = most
        for name, values in GRID.items():
            for other in (replace(best, **{name: value}) for value in values):
                if (found := likelihood(other)) > most:
                    best, most = other, found
    return best


def _places(work: Work) -> Array:
    each = work.context / np.maximum(1.0, work.batch)
    return np.log2(1.0 + np.stack([work.batch, each, work.tokens], axis=1)) / REACH


def _apart(places: Array, others: Array) -> Array:
    """Squared distance of each to each."""
    return np.asarray(((places[:, None, :] - others[None, :, :]) ** 2).sum(axis=2))


def _alike(apart: Array, near: float) -> Array:
    return np.asarray(near * np.exp(-0.5 * apart) + (1.0 - near) * (apart < 1e-9))


def _wide(apart: Array) -> Array:
    return np.asarray(np.exp(-0.5 * apart / WIDE**2))


def _turned(slowness: Array, others: Array) -> Array:
    return np.asarray(np.exp(-0.5 * ((slowness[:, None] - others[None, :]) / TURN) ** 2))
