"""Pure: experts pooled by log-loss: which level, and which text model, to believe for this model's traffic.

Classes are pooled geometrically: p(c) is proportional to exp(b_c + sum_e w_e log p_e(c)), and the weights
follow the gradient of the log-loss after each completion (the mixer of context-mixing compression:
M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005). They are kept apart by
how much evidence the finest level has. Only ratios of probabilities matter, so an expert's word is its odds
of short and of long against medium, in bits: CPython's log2 takes a quarter of its log's time. Quantiles are
averaged; weight falls with recent pinball loss.
"""

from collections.abc import Iterable, Sequence
from math import exp, log2

from predictor.history import Estimate

BIT = 0.6931471805599453  # nats
RATE = 0.01 * BIT  # of the class weights, per bit
BIAS_RATE = 0.003
FLOOR = 1e-3  # added to a probability before its logarithm
LIMIT = 50.0  # of the pooled log odds: beyond it exp() only loses digits
PINBALL_DECAY = 0.98
PINBALL_SHARPNESS = 4.0

Classes = tuple[float, float, float]
Odds = tuple[float, float]  # log2 of p(short) / p(medium), of p(long) / p(medium)


def pooled(
    weights: Sequence[float], bias: Sequence[float], said: Iterable[Estimate]
) -> tuple[Classes, list[Odds]]:
    """(the pooled class probabilities, which sum to 1; each expert's log odds, raised by FLOOR)."""
    s = ell = 0.0
    odds: list[Odds] = []
    for w, (short, medium, long, _, _, _) in zip(weights, said, strict=True):
        scale = 1.0 / (medium + FLOOR)
        of_short, of_long = log2((short + FLOOR) * scale), log2((long + FLOOR) * scale)
        s += w * of_short
        ell += w * of_long
        odds.append((of_short, of_long))
    low, middle, high = bias
    s = BIT * s + (low - middle)
    ell = BIT * ell + (high - middle)
    s = exp(s if s < LIMIT else LIMIT)
    ell = exp(ell if ell < LIMIT else LIMIT)
    scale = 1.0 / (1.0 + s + ell)
    return (s * scale, scale, ell * scale), odds


def learn_pool(
    weights: list[float], bias: list[float], said: Sequence[Odds], classes: Classes, size: int
) -> float:
    """One step down the log-loss of `classes`, what was pooled, in place; that log-loss, in nats."""
    s, m, ell = (size == 0) - classes[0], (size == 1) - classes[1], (size == 2) - classes[2]
    bias[0] += BIAS_RATE * s
    bias[1] += BIAS_RATE * m
    bias[2] += BIAS_RATE * ell
    s *= RATE
    ell *= RATE
    for place, (short, long) in enumerate(said):
        weight = weights[place] + s * short + ell * long
        weights[place] = weight if weight > 0.0 else 0.0
    return -BIT * log2(classes[size] + 1e-9)


class QuantilePool:
    """Weights over experts for one quantile, by decayed pinball loss in log tokens."""

    __slots__ = ("losses", "tau", "weights")

    def __init__(self, experts: int, tau: float) -> None:
        self.tau = tau
        self.losses = [0.0] * experts
        self.weights = [1.0 / experts] * experts

    def learn(self, said: Iterable[Estimate], at: int, log_tokens: float) -> None:
        """`at`: where in an estimate this quantile is."""
        tau, losses = self.tau, []
        for expert, loss in zip(said, self.losses, strict=True):
            miss = log_tokens - expert[at]
            losses.append(PINBALL_DECAY * loss + (tau if miss > 0.0 else tau - 1.0) * miss)
        self.restore(losses)

    def restore(self, losses: list[float]) -> None:
        self.losses = losses
        best = min(losses)
        raw = [exp(PINBALL_SHARPNESS * (best - loss)) for loss in losses]
        scale = 1.0 / sum(raw)
        self.weights = [w * scale for w in raw]


def pinball(tau: float, actual: float, predicted: float) -> float:
    """Loss of a quantile forecast: tau per unit above it, 1 - tau per unit below it."""
    return (tau if actual > predicted else tau - 1.0) * (actual - predicted)
