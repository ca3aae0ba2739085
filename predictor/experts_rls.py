"""Pure: a linear model that learns from each completion: recursive least squares with forgetting.

Three targets share one covariance: log tokens, whether the answer is short, and whether it is long. The first
gives quantiles and, with a normal residual, class probabilities; the others are probabilities by themselves.
(S. Haykin, "Adaptive Filter Theory", ch. 10; the covariance is not let grow beyond its start.)
"""

from math import erf, sqrt
from operator import mul

import numpy as np
from numpy.typing import NDArray

from predictor.history import Estimate

FORGET = 0.9995
TARGETS = 3
SPREAD_DECAY = 0.98
Z90 = 1.2816  # standard normal quantile at 0.9
LEAST = 0.02  # probability that an indicator's line may fall to


class LeastSquares:
    """`weights` is (3, d); `covariance` (d, d), both float64 and owned by this object."""

    def __init__(self, weights: NDArray[np.float64], covariance: NDArray[np.float64], spread: float) -> None:
        self.weights = weights
        self.covariance = covariance
        self.spread = spread  # variance of the log residual
        self._bound = float(np.trace(covariance))
        self._lines: list[list[float]] = weights.tolist()

    def say(self, x: list[float], cuts: tuple[float, float]) -> tuple[Estimate, Estimate]:
        """By the normal residual, and by the indicators. `cuts` are log tokens."""
        middle, s, ell = [sum(map(mul, line, x)) for line in self._lines]
        deviation = sqrt(self.spread)
        scale = 1.0 / (deviation * 1.4142135623730951)
        below = 0.5 + 0.5 * erf((cuts[0] - middle) * scale)
        within = 0.5 + 0.5 * erf((cuts[1] - middle) * scale)
        high = middle + Z90 * deviation
        s, m, ell = max(s, LEAST), max(1.0 - s - ell, LEAST), max(ell, LEAST)
        share = 1.0 / (s + m + ell)
        return (
            (below, within - below, 1.0 - within, middle, high, 1.0),
            (s * share, m * share, ell * share, middle, high, 1.0),
        )

    def learn(self, x: list[float], size: int, log_tokens: float) -> None:
        row = np.array(x)
        projected = self.covariance @ row
        gain = projected / (FORGET + float(row @ projected))
        missed = np.array((log_tokens, size == 0, size == 2), float) - self.weights @ row
        self.weights += missed[:, None] * gain
        self.covariance -= gain[:, None] * projected
        if float(self.covariance.trace()) < self._bound:
            self.covariance *= 1.0 / FORGET
        self.spread = max(0.02, SPREAD_DECAY * self.spread + (1.0 - SPREAD_DECAY) * float(missed[0]) ** 2)
        self._lines = self.weights.tolist()
