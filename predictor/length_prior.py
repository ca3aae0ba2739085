"""Pure: the text prior: two numbers about a prompt, trained offline and served from flat lists.

`ngrams`: ridge regression of log tokens on hashed words and word pairs, each present or not, at unit length.
`trees`: boosted trees on `predictor.features` and the first number. Both say how much longer than usual for
its model an answer will be, in log tokens; the usual is learned online: a prior never speaks for a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

SLOTS = 1 << 16
MASK = SLOTS - 1
HEADS, TAILS = (1, 2, 3, 4), (5, 6, 7)  # what the hashes of words in these places begin from
SCORES = 2
ZERO = 128  # the byte of a weight of 0
FIRST, LAST = 72, 32  # words that are looked at
PAIRED = 24  # the first of them, whose pairs are


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
    """What training left: a weight by slot, and trees.

    A weight is a byte: `unit` times what it is above ZERO. The table is read at random places, so its size
    is its cost.
    """

    ngrams: bytes
    unit: float
    start: float
    trees: Trees

    def scores(self, words: Sequence[bytes], numbers: list[float]) -> list[float]:
        """(n-gram score, tree score), in log tokens above what is usual for the model."""
        ngrams, hashes = self.ngrams, hashes_of(words)
        number = len(hashes)
        above = sum([ngrams[code & MASK] for code in hashes]) - ZERO * number
        score = self.start + self.unit * above * number**-0.5
        return [score, self.trees.value([*numbers, score])]


def slots_of(words: Sequence[bytes]) -> list[int]:
    """Where the weights of these words are. A slot may come twice."""
    return [code & MASK for code in hashes_of(words)]


def hashes_of(words: Sequence[bytes]) -> list[int]:
    """Of the words, of neighbouring pairs, of the first and last words by place, and of the length.

    A word counts once. A pair's hash is that of its second word begun from that
    of its first.
    """
    read = words if len(words) <= FIRST + LAST else [*words[:FIRST], *words[-LAST:]]
    codes = list(map(crc32, read))
    number = len(codes)
    return [
        *set(codes),
        *map(crc32, read[1:PAIRED], codes),
        *map(crc32, read[:4], HEADS),
        *map(crc32, read[-3:], TAILS),
        *(number // 4 * 17 + 4, number // 16 * 17 + 16, number // 64 * 17 + 64),
    ]
