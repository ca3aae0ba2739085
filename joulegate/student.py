"""Pure: how far a mean of few values may be off: Student's t."""

from math import floor
from statistics import NormalDist

FEW = (12.706, 4.303, 3.182, 2.776)  # of one to four degrees of freedom


def student(freedom: float) -> float:
    """The 97.5 % quantile, by Cornish and Fisher; within 0.15 % at whole degrees of freedom from one on."""
    if freedom < len(FEW) + 1:
        return FEW[max(1, floor(freedom)) - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4.0
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    third = (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0
    return z + first / freedom + second / freedom**2 + third / freedom**3
