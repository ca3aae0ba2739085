"""Pure: values counted in buckets so narrow that a percentile of them is right to half a thousandth.

A bucket is what numbers have in common down to the tenth binary digit after the first: an octave has 1,024 of
them, so a value is known to within 0.05 % of itself. One number, the mark, is told from all others exactly:
whether a percentile is over it is decided as if every value had been kept. What is kept are the buckets that
something fell into, some ten thousand where values go over ten octaves, however many values there are.
"""

from collections.abc import Sequence
from math import ceil, inf, isinf

import numpy as np

from simulator.workload import Floats, Ints

DROPPED = 42  # binary digits of a double that a bucket does not tell apart
NONE: Ints = np.zeros(0, dtype=np.int64)


class Spread:
    """Values from zero up; infinite ones too."""

    __slots__ = ("_buckets", "_counts", "mark", "within")

    def __init__(self, mark: float = inf) -> None:
        self.mark = mark
        self.within = 0  # values up to the mark
        self._buckets, self._counts = NONE, NONE  # ascending

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def finite(self) -> int:
        """Values that are not infinite."""
        return int(self._counts[self._buckets < _buckets(np.array([inf]))[0]].sum())

    def add(self, values: Floats) -> None:
        self.within += int(np.count_nonzero(values <= self.mark))
        self._take(_buckets(values), np.ones(len(values), dtype=np.int64))

    def _take(self, buckets: Ints, counts: Ints) -> None:
        self._buckets, place = np.unique(np.concatenate([self._buckets, buckets]), return_inverse=True)
        total = np.bincount(place, np.concatenate([self._counts, counts]), len(self._buckets))
        self._counts = total.astype(np.int64)

    def ranked(self, rank: int) -> float:
        """The value with so many before it. Raises IndexError where there is none."""
        upto = np.cumsum(self._counts)
        n = int(np.searchsorted(upto, rank, side="right"))
        edges: Floats = (np.array([self._buckets[n], self._buckets[n] + 1]) << DROPPED).view(np.float64)
        low, high = float(edges[0]), float(edges[1])
        if low <= self.mark < high:
            early = rank < self.within
            low, high = (low, self.mark) if early else (self.mark, high)
        return low if low == 0.0 or isinf(low) else 0.5 * (low + high)

    def quantile(self, share: float) -> float:
        """The next value up where the share falls between two."""
        return self.ranked(ceil((self.count - 1) * share))

    def median(self) -> float:
        """The mean of the two in the middle, where there are two."""
        return 0.5 * (self.ranked((self.count - 1) // 2) + self.ranked(self.count // 2))


def _buckets(values: Floats) -> Ints:
    return np.ascontiguousarray(values).view(np.int64) >> DROPPED


def together(spreads: Sequence[Spread]) -> Spread:
    """All their values; the mark is kept where it is the same."""
    marks = {spread.mark for spread in spreads}
    whole = Spread(marks.pop() if len(marks) == 1 else inf)
    for spread in spreads:
        whole._take(spread._buckets, spread._counts)
    whole.within = sum(spread.within for spread in spreads) if whole.mark < inf else whole.count
    return whole
