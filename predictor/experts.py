"""Pure: experts pooled by log-loss: which level, and which text model, to believe for this model's traffic.

Classes are pooled geometrically: p(c) is proportional to exp(b_c + sum_e w_e log p_e(c)), and the weights
follow the gradient of the log-loss after each completion (the mixer of context-mixing compression:
M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005). They are kept apart by
how much evidence the finest level has. Quantiles are averaged; weight falls with recent pinball loss.
"""

from collections.abc import Sequence
from math import exp, log

from predictor.history import Estimate

RATE = 0.01  # of the class weights
FLOOR = 1e-3  # added to a probability before its logarithm
PINBALL_DECAY = 0.98
PINBALL_SHARPNESS = 4.0

Classes = tuple[float, float, float]


def logs(said: Sequence[Estimate]) -> list[Classes]:
    """log(p + FLOOR) of each expert's classes; the same object said twice is computed once."""
    out: list[Classes] = []
    last: Estimate | None = None
    for estimate in said:
        if estimate is not last:
            triple = (log(estimate[0] + FLOOR), log(estimate[1] + FLOOR), log(estimate[2] + FLOOR))
            last = estimate
        out.append(triple)
    return out


def pooled(weights: Sequence[float], bias: Sequence[float], said: Sequence[Classes]) -> Classes:
    """The pooled class probabilities; sums to 1."""
    s, m, ell = bias
    for w, (ls, lm, ll) in zip(weights, said, strict=True):
        s += w * ls
        m += w * lm
        ell += w * ll
    top = max(s, m, ell)
    s, m, ell = exp(s - top), exp(m - top), exp(ell - top)
    scale = 1.0 / (s + m + ell)
    return s * scale, m * scale, ell * scale


def learn_pool(weights: list[float], bias: list[float], said: Sequence[Classes], size: int) -> float:
    """One step down the log-loss of what was pooled, in place; the log-loss before the step, in nats."""
    classes = pooled(weights, bias, said)
    s, m, ell = (RATE * ((place == size) - p) for place, p in enumerate(classes))
    for place, (ls, lm, ll) in enumerate(said):
        weights[place] = max(0.0, weights[place] + s * ls + m * lm + ell * ll)
    for place, step in enumerate((s, m, ell)):
        bias[place] += 0.3 * step
    return -log(classes[size] + 1e-9)


class QuantilePool:
    """Weights over experts for one quantile, by decayed pinball loss in log tokens."""

    def __init__(self, experts: int, tau: float) -> None:
        self.tau = tau
        self.losses = [0.0] * experts
        self.weights = [1.0 / experts] * experts

    def mean(self, said: Sequence[float]) -> float:
        return sum([w * q for w, q in zip(self.weights, said, strict=True)])

    def learn(self, said: Sequence[float], log_tokens: float) -> None:
        self.losses = [
            PINBALL_DECAY * loss + pinball(self.tau, log_tokens, q)
            for loss, q in zip(self.losses, said, strict=True)
        ]
        self._weigh()

    def restore(self, losses: list[float]) -> None:
        self.losses = losses
        self._weigh()

    def _weigh(self) -> None:
        best = min(self.losses)
        raw = [exp(PINBALL_SHARPNESS * (best - loss)) for loss in self.losses]
        scale = 1.0 / sum(raw)
        self.weights = [w * scale for w in raw]


def pinball(tau: float, actual: float, predicted: float) -> float:
    """Loss of a quantile forecast: tau per unit above it, 1 - tau per unit below it."""
    return (tau if actual > predicted else tau - 1.0) * (actual - predicted)
