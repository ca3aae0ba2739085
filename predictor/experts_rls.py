"""Pure: a linear model that learns from each completion: recursive least squares with forgetting.

Three targets share one covariance: log tokens, whether the answer is short, and whether it is long. The first
gives quantiles and, with a normal residual, class probabilities; the others are probabilities by themselves.
(S. Haykin, "Adaptive Filter Theory", ch. 10; the covariance is not let grow beyond its start.)
"""

from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from predictor.history import Estimate

FORGET = 0.9995
INFLATE_EVERY = 16  # completions between two rounds of forgetting
TARGETS = 3
SPREAD_DECAY = 0.98
Z90 = 1.2816  # standard normal quantile at 0.9
STEP = 0.1  # variance that the level gains with a completion in doubt
LEAST = 0.02  # probability that an indicator's line may fall to


Inputs = NDArray[np.float64]  # (d,)


class LeastSquares:
    """`covariance` (d, d) above `weights` (3, d) in one float64 matrix: a completion is one step of both."""

    def __init__(self, weights: NDArray[np.float64], covariance: NDArray[np.float64], spread: float) -> None:
        size = len(covariance)
        self._matrix = np.vstack([covariance, weights])
        self.covariance = self._matrix[:size]
        self.weights = self._matrix[size:]
        self.spread = spread  # variance of the log residual
        self._bound = float(np.trace(covariance))
        self._count = 0

    def say(self, x: Inputs, cuts: tuple[float, float]) -> tuple[Estimate, Estimate]:
        """By the normal residual, and by the indicators. `cuts` are log tokens."""
        middle, s, ell = self.weights.dot(x).tolist()
        deviation = sqrt(self.spread)
        scale = 1.0 / (deviation * 1.4142135623730951)
        below = 0.5 + 0.5 * erf((cuts[0] - middle) * scale)
        within = 0.5 + 0.5 * erf((cuts[1] - middle) * scale)
        high = middle + Z90 * deviation
        m = 1.0 - s - ell
        s = s if s > LEAST else LEAST
        m = m if m > LEAST else LEAST
        ell = ell if ell > LEAST else LEAST
        share = 1.0 / (s + m + ell)
        return (
            (below, within - below, 1.0 - within, middle, high, 1.0),
            (s * share, m * share, ell * share, middle, high, 1.0),
        )

    def loosen(self, variance: NDArray[np.float64]) -> None:
        """Forget how sure the weights are, not the weights."""
        self.covariance[:] = np.diag(variance)

    def doubt(self) -> None:
        """The level, which is the weight of the first feature, may have moved: the next answers tell."""
        self.covariance[0, 0] += STEP

    def learn(self, x: Inputs, size: int, log_tokens: float) -> None:
        matrix, covariance = self._matrix, self.covariance
        step = matrix.dot(x)  # the gain, then what was predicted, which becomes what was too much
        wide = len(x)
        gain = step[:wide]
        middle, short, long = step[wide:].tolist()
        missed = log_tokens - middle
        step[wide] = -missed
        step[wide + 1] = short - (size == 0)
        step[wide + 2] = long - (size == 2)
        step *= sqrt(1.0 / (FORGET + float(x.dot(gain))))
        matrix -= step[:, None].dot(gain[None])  # stays symmetric to the last bit
        self._count += 1
        if self._count % INFLATE_EVERY == 0 and float(covariance.trace()) < self._bound:
            covariance *= FORGET**-INFLATE_EVERY
        self.spread = max(0.02, SPREAD_DECAY * self.spread + (1.0 - SPREAD_DECAY) * missed * missed)
