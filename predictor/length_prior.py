"""Pure: the text prior: four numbers about a prompt, trained offline and served from flat lists.

`ngrams`: ridge regression on hashed words and word pairs, each present or not, at unit length; of log tokens,
and of being short and being long. `trees`: boosted trees of log tokens on the features and those scores.
All say how much more than usual for its model; the usual is learned online: a prior never speaks for a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

SLOTS = 1 << 16
SCORES = 3  # log tokens, short, long


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
    """What training left: for each of SCORES a weight by slot, and trees."""

    ngrams: tuple[list[float], ...]
    starts: tuple[float, ...]
    trees: Trees

    def scores(self, words: Sequence[str], numbers: list[float]) -> list[float]:
        """The n-gram scores, then the tree score; each is relative to what is usual for the model."""
        slots = slots_of(words)
        scale = len(slots) ** -0.5
        scores = [
            start + scale * sum([weights[slot] for slot in slots])
            for start, weights in zip(self.starts, self.ngrams, strict=True)
        ]
        scores.append(self.trees.value([*numbers, *scores]))
        return scores


def slots_of(words: Sequence[str]) -> list[int]:
    """Slots of the words, of neighbouring pairs, of the first and last words by place, and of the length."""
    codes = [crc32(word.encode()) for word in words]
    slots = {code % SLOTS for code in codes}
    slots.update([(first * 31 + second) % SLOTS for first, second in pairwise(codes)])
    slots.update([(code * 7919 + place) % SLOTS for place, code in enumerate(codes[:4], 1)])
    slots.update([(code * 104729 + place) % SLOTS for place, code in enumerate(codes[-3:], 1)])
    slots.update([(len(codes) // step * 17 + step) % SLOTS for step in (4, 16, 64)])
    return list(slots)
