"""Pure: the text prior: two numbers about a prompt, trained offline and served from flat lists.

`ngrams`: ridge regression of log tokens on hashed words and word pairs, each present or not, unit length.
`trees`: boosted trees on `predictor.features` and the first number. Both say how much longer than usual for
its model the answer will be, in log tokens; the usual is learned online: a prior never speaks for a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

SLOTS = 1 << 14


@dataclass(frozen=True, slots=True)
class Trees:
    """Flat boosted trees: node i goes to `left[i]` where x[feature[i]] <= threshold[i]; -1 marks a leaf."""

    roots: list[int]
    feature: list[int]
    threshold: list[float]  # at a leaf: its value
    left: list[int]
    right: list[int]
    start: float

    def value(self, x: Sequence[float]) -> float:
        total = self.start
        feature, threshold, left, right = self.feature, self.threshold, self.left, self.right
        for node in self.roots:
            place = feature[node]
            while place >= 0:
                node = left[node] if x[place] <= threshold[node] else right[node]
                place = feature[node]
            total += threshold[node]
        return total


@dataclass(frozen=True, slots=True)
class TextPrior:
    """What training left: n-gram weights by slot, and trees."""

    ngrams: list[float]
    start: float
    trees: Trees

    def scores(self, words: Sequence[str], numbers: list[float]) -> list[float]:
        """(n-gram score, tree score), both in log tokens above what is usual."""
        slots = slots_of(words)
        weights = self.ngrams
        score = self.start
        if slots:
            score += sum([weights[slot] for slot in slots]) / len(slots) ** 0.5
        return [score, self.trees.value([*numbers, score])]


def slots_of(words: Sequence[str]) -> set[int]:
    """Slots of the words and of the pairs of neighbours."""
    codes = [crc32(word.encode()) for word in words]
    pairs = [(first * 31 + second) % SLOTS for first, second in pairwise(codes)]
    return {code % SLOTS for code in codes}.union(pairs)
