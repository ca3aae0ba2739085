"""Pure: what the physics leaves over, pooled over operating points (training time only).

A load that was measured at a few clocks has an offset and a slope of its own over the clock; either may be
noise. They are shrunk towards those of like loads, and all towards none, as far as the rows themselves say
(partial pooling): a Gaussian process on log(observed / physics) with the kernel

    (near * exp(-d^2/2) + (1 - near) * [same load]) * (offset^2 + slope^2 * g(x) g(x'))     g(x) = ln x

where d counts `REACH` doublings of the work, plus noise. The scales are those of greatest marginal
likelihood on a grid (C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006,
§2.2, §5.4).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from predictor.refit import Array, Work

MOST_ROWS = 400  # beyond, trees have enough to learn from, and the algebra gets slow
LEAST_ROWS = 8
REACH = 1.5  # doublings of batch, context or prompt within which loads are alike
OFFSETS = (0.01, 0.03, 0.08)  # log
SLOPES = (0.01, 0.05, 0.15)  # per unit of ln x
NOISES = (0.005, 0.01, 0.02, 0.04)
NEARS = (0.3, 0.8)


@dataclass(frozen=True, slots=True)
class Scales:
    offset: float
    slope: float
    noise: float
    near: float


@dataclass(frozen=True, slots=True)
class Pooling:
    """Fitted: where rows lie, and how much each says about other places."""

    places: Array  # (n, 3) doublings of the work
    slowness: Array  # (n,) ln x
    pull: Array  # (n,) covariance^-1 of what the rows left over
    scales: Scales

    def advice(self, work: Work) -> Array:
        # A table asks the same loads at every clock: each load is compared with the rows once.
        loads, which = np.unique(_places(work), axis=0, return_inverse=True)
        alike = _alike(loads, self.places, self.scales)
        offset = self.scales.offset**2 * (alike @ self.pull)
        slope = self.scales.slope**2 * (alike @ (self.slowness * self.pull))
        return np.asarray(offset[which] + slope[which] * np.log(work.x))


def fit_pooling(work: Work, left: Array) -> tuple[Pooling, Array] | None:
    """(the pooling of what is left, what it says of each row without that row); None: too few or too many."""
    if not LEAST_ROWS <= len(left) <= MOST_ROWS:
        return None
    places, slowness = _places(work), np.log(work.x)
    best: tuple[float, Scales, Array] | None = None
    for scales in (Scales(*choice) for choice in product(OFFSETS, SLOPES, NOISES, NEARS)):
        covariance = _kernel(places, slowness, scales)
        covariance[np.diag_indices(len(left))] += scales.noise**2
        root = np.linalg.cholesky(covariance)
        white = np.linalg.solve(root, left)
        likelihood = -0.5 * float(white @ white) - float(np.log(root.diagonal()).sum())
        if best is None or likelihood > best[0]:
            best = (likelihood, scales, covariance)
    assert best is not None
    _, scales, covariance = best
    precision = np.linalg.inv(covariance)
    pull = precision @ left
    unseen = left - pull / precision.diagonal()
    return Pooling(places, slowness, pull, scales), unseen


def _places(work: Work) -> Array:
    each = work.context / np.maximum(1.0, work.batch)
    return np.log2(1.0 + np.stack([work.batch, each, work.tokens], axis=1)) / REACH


def _kernel(places: Array, slowness: Array, scales: Scales) -> Array:
    clocks = scales.offset**2 + scales.slope**2 * np.outer(slowness, slowness)
    return np.asarray(_alike(places, places, scales) * clocks)


def _alike(places: Array, others: Array, scales: Scales) -> Array:
    apart: npt.NDArray[np.float64] = ((places[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(scales.near * np.exp(-0.5 * apart) + (1.0 - scales.near) * (apart < 1e-9))
