"""Pure: the type of a request from what is predicted, and the pool that serves it.

Input size is known. Output size is a guess with class probabilities, and the two ways to be wrong do not
cost the same: a request taken for larger than it is only costs energy, one taken for smaller may cost the
objective of everybody in its batch. So the class with the least expected cost wins, not the likeliest:
being one class too small costs `under` times as much as one too large. Nothing known about the output is a
flat distribution, and that is taken for large.
"""

from collections.abc import Iterable

from control.state import PoolRules
from joulegate.domain import Cuts, LengthPrediction, RequestType, Size

TYPES = tuple(tuple(RequestType(given, made) for made in Size) for given in Size)
UNDER_PREDICTION = 3.0  # cost of one class too small, in units of one class too large


def classify(
    uncached_tokens: int, prediction: LengthPrediction, cuts: Cuts, under: float = UNDER_PREDICTION
) -> RequestType:
    """The type that routing uses."""
    return TYPES[cuts.input_size(uncached_tokens)][output_size(prediction, under)]


def output_size(prediction: LengthPrediction, under: float = UNDER_PREDICTION) -> Size:
    """The size with the least expected cost under the predicted class probabilities."""

    short, medium, long = prediction.classes
    as_short, as_medium, as_long = under * (medium + 2.0 * long), short + under * long, 2.0 * short + medium
    if as_long <= as_medium and as_long <= as_short:
        return Size.L
    return Size.M if as_medium <= as_short else Size.S


def pool_for(kind: RequestType, pools: Iterable[PoolRules]) -> PoolRules | None:
    """The pool that serves the type; else the smallest pool that dominates it; None if there is none."""
    chosen: PoolRules | None = None
    for pool in pools:
        if kind in pool.types:
            return pool
        larger = any(kind.fits_in(t) for t in pool.types)
        if larger and (chosen is None or pool.reach < chosen.reach):
            chosen = pool
    return chosen
