"""Pure: what the physics leaves over, learned by boosted trees (training time only: needs scikit-learn), or
pooled over operating points where there are few rows (`predictor.latency_pooling`): whichever leaves less of
rows it has not seen.

The trees are not constrained to be monotone: constrained ones cannot flatten a prior that is too steep.
What is served is the table they are compiled into, and that is made monotone (`predictor.table_build`).

How much of the trees to believe is decided by rows they have not seen, fold by fold: the least absolute
error picks the share of their advice that is taken, from none (a sweep that the physics explains) to all
of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import GradientBoostingRegressor

from predictor.latency_fit import Array, Work
from predictor.latency_pooling import Pooling, fit_pooling

TREES = 60
LEAVES = 8
LEAST_ROWS = 5  # in a leaf
LEARNING_RATE = 0.1
FOLDS = 5
SMALL, SMALL_FOLDS = 80, 10  # with five a small sweep starves, and the trees look worse than they are
ODD = 3.0  # robust standard deviations: what is left beyond counts as so much
LEAST_ALIKE = 3  # rows of a load that can tell what is odd there
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
WORTH = 0.995  # a share must leave less than this of the error that a smaller one leaves
FEW_ROWS, FEW_ROWS_ERROR = 20, 0.05  # fewer rows cannot vouch for a smaller error than this


@dataclass(frozen=True, slots=True)
class Residual:
    """Log of truth over physics, as far as it is believed; and what is left of it on rows not seen."""

    trees: GradientBoostingRegressor | None
    pooling: Pooling | None
    share: float
    error_p90: float  # of |log(observed / predicted)|
    error_p95: float

    def advice(self, work: Work, physics: Array) -> Array:
        if self.pooling is not None:
            return self.pooling.advice(work)
        if self.trees is None:
            return np.zeros(len(physics))
        return np.asarray(self.share * self.trees.predict(features(work, physics)))


def fit_residual(work: Work, physics: Array, observed: Array, rng: np.random.Generator) -> Residual:
    """Learn log(observed / physics). `rng` deals rows to folds."""
    left = np.log(observed / physics)
    inputs, even = features(work, physics), _evened(left)
    unseen = _out_of_fold(inputs, even, rng)
    share = _believed(left, unseen)
    error = np.abs(left - share * unseen)
    pooling, expected = _pooled(left, work)
    if np.abs(left - expected).mean() < error.mean():
        share, error = 1.0, np.abs(left - expected)
    else:
        pooling = None
    least = FEW_ROWS_ERROR if len(left) < FEW_ROWS else 0.0
    p90, p95 = (max(least, float(np.quantile(error, q))) for q in (0.9, 0.95))
    trees = _boost(inputs, even) if share and pooling is None else None
    return Residual(trees, pooling, share, p90, p95)


def _pooled(left: Array, work: Work) -> tuple[Pooling | None, Array]:
    """A pooling of what is left, odd rows pulled in, and what it says of each row unseen; none: zeros.

    A row is odd that is far from the others of its load, or from what all others let expect, as a load that
    bends is far from its own median: whichever way leaves less.
    """
    plain = fit_pooling(work, left)
    if plain is None:
        return None, np.zeros_like(left)
    ways = (_evened_by_load(left, work), _pulled_in(left, plain[1]))
    found = [pooling for pooling in (fit_pooling(work, way) for way in ways) if pooling is not None]
    return min(found, key=lambda pooling: float(np.abs(left - pooling[1]).mean()))


def features(work: Work, physics: Array) -> Array:
    """Columns: log sizes of the work, clock share, and log of what the physics says."""
    return np.stack(
        [
            np.log2(1.0 + work.batch),
            np.log2(1.0 + work.context / np.maximum(1.0, work.batch)),
            np.log2(1.0 + work.context),
            np.log2(1.0 + work.tokens),
            work.x,
            np.log(physics),
        ],
        axis=1,
    )


def _evened(left: Array) -> Array:
    """Odd rows pulled in: robust at the price of least squares, where a robust loss is ten times slower."""
    return _pulled_in(left, np.full(len(left), np.median(left)))


def _evened_by_load(left: Array, work: Work) -> Array:
    """The same where few rows are: what is far from the other rows of its load, if it has some, is odd."""
    loads = np.stack([work.batch, work.context, work.tokens, work.attention], axis=1)
    _, load, size = np.unique(loads, axis=0, return_inverse=True, return_counts=True)
    middle = np.full(len(left), np.median(left))
    for place in np.flatnonzero(size >= LEAST_ALIKE):
        middle[load == place] = np.median(left[load == place])
    return _pulled_in(left, middle)


def _pulled_in(left: Array, middle: Array) -> Array:
    spread = 1.4826 * np.median(np.abs(left - middle))
    return np.asarray(np.clip(left, middle - ODD * spread, middle + ODD * spread))


def _boost(inputs: Array, left: Array) -> GradientBoostingRegressor:
    trees = GradientBoostingRegressor(
        learning_rate=LEARNING_RATE,
        n_estimators=TREES,
        max_leaf_nodes=LEAVES,
        max_depth=None,
        min_samples_leaf=LEAST_ROWS,
        random_state=0,
    )
    return trees.fit(inputs, left)


def _out_of_fold(inputs: Array, left: Array, rng: np.random.Generator) -> Array:
    unseen = np.zeros_like(left)
    folds = SMALL_FOLDS if len(left) < SMALL else FOLDS
    if len(left) < 2 * FOLDS:
        return unseen
    fold: npt.NDArray[np.int64] = rng.permutation(len(left)) % folds
    for k in range(folds):
        out = fold == k
        unseen[out] = _boost(inputs[~out], left[~out]).predict(inputs[out])
    return unseen


def _believed(left: Array, unseen: Array) -> float:
    best, lowest = 0.0, float(np.abs(left).mean())
    for share in SHARES[1:]:
        error = float(np.abs(left - share * unseen).mean())
        if error < WORTH * lowest:
            best, lowest = share, error
    return best
