"""Pure: the distribution behind a length prediction, and what is left of it once some tokens are out."""

from bisect import bisect_right
from math import exp, log

from joulegate.domain import Cuts, LengthPrediction

LONGEST = 131_072.0  # tokens; where the curve ends when nothing caps the answer
TAIL = 4.0  # the curve reaches 1 at q90 * TAIL, or a cap


def remaining(cuts: Cuts, prediction: LengthPrediction, generated: int, cap: int | None) -> LengthPrediction:
    """Tokens still to come given that more than `generated` are out: quantiles and sizes of the rest.

    The curve is piecewise linear in log tokens through (cuts, class probabilities), q50 and q90: so a request
    that outlived its q90 is not "about to end" but has the tail of the curve before it.
    """
    if generated <= 0:
        return prediction
    lengths, below = _curve(cuts, prediction, generated, cap)
    gone = _probability(lengths, below, float(generated))
    left = 1.0 - gone

    def quantile(tau: float) -> float:
        return max(1.0, _length(lengths, below, gone + tau * left) - generated)

    short, medium = ((_probability(lengths, below, generated + cut) - gone) / left for cut in cuts.output)
    return LengthPrediction(quantile(0.5), quantile(0.9), (short, medium - short, 1.0 - medium))


def _curve(
    cuts: Cuts, prediction: LengthPrediction, generated: int, cap: int | None
) -> tuple[list[float], list[float]]:
    """Log lengths and the share of answers no longer than each, both rising strictly from 0 to 1."""
    short, medium, _ = prediction.classes
    end = float(cap) if cap else min(LONGEST, max(prediction.q90 * TAIL, generated * TAIL))
    end = max(end, generated + 1.0)
    points = [(float(cuts.output[0]), short), (float(cuts.output[1]), short + medium)]
    points += [(prediction.q50, 0.5), (prediction.q90, 0.9)]
    points.sort()
    lengths, below = [0.0], [0.0]
    for tokens, share in points:
        at = log(max(tokens, 1.0))
        if at <= lengths[-1] or tokens >= end:
            continue
        lengths.append(at)
        below.append(min(max(share, below[-1]), 0.999))
    lengths.append(log(end) if log(end) > lengths[-1] else lengths[-1] + 1e-9)
    below.append(1.0)
    return lengths, below


def _probability(lengths: list[float], below: list[float], tokens: float) -> float:
    at = log(max(tokens, 1.0))
    place = bisect_right(lengths, at)
    if place >= len(lengths):
        return 1.0
    start, end = lengths[place - 1], lengths[place]
    return below[place - 1] + (below[place] - below[place - 1]) * (at - start) / (end - start)


def _length(lengths: list[float], below: list[float], share: float) -> float:
    place = min(bisect_right(below, share), len(below) - 1)
    start, end = below[place - 1], below[place]
    part = (share - start) / (end - start) if end > start else 1.0
    return exp(lengths[place - 1] + min(part, 1.0) * (lengths[place] - lengths[place - 1]))
