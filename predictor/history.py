"""Pure: what has been seen before: decayed counts and quantiles of output length by key, with back-off.

A row answers "how long were the answers under this key": counts of short, medium and long answers, decayed
so that the past fades, and two tracked quantiles of the natural log of the length. Keys form a tree (LEVELS):
a level with few observations leans on its parent, as n / (n + strength).

Rows live in one table bounded by `capacity`; the key that was learned from longest ago is dropped first.
A child row is only made once its parent has been seen, so a key that comes once costs one or two rows.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import log
from struct import Struct
from typing import NamedTuple

WEIGHT, SHORT, MEDIUM, LONG, LOG50, LOG90 = range(6)
ROW_FIELDS = 6
ROW = Struct(f"{ROW_FIELDS}f")  # rows are kept packed: 57 bytes each
MIN_STEP = 0.05  # of a tracked quantile, in log tokens, once a row is old
MASK = (1 << 60) - 1


class Level(NamedTuple):
    """One kind of key. `parent` is the place in the list of estimates, where 0 is the base."""

    name: str
    parent: int
    strength: float  # how many observations the parent's word is worth
    decay: float  # of the counts, per observation
    eager: bool = False  # make the row at once, although the parent is new


# What one level says: probabilities of S, M, L, then two quantiles of log tokens, then its own evidence.
# A plain tuple: making it is a third of the cost of a prediction.
Estimate = tuple[float, float, float, float, float, float]

LEVELS = (
    Level("model", 0, 2.0, 0.998, True),
    Level("recent", 1, 2.0, 0.95, True),
    Level("key", 1, 2.0, 0.99, True),
    Level("system", 3, 2.0, 0.99),
    Level("bucket", 4, 2.0, 0.99),
    Level("fine", 5, 2.0, 0.98),
    Level("exact", 6, 1.0, 0.95),
    Level("session", 4, 2.0, 0.98),
)
VOICES = (2, 4, 5, 7, 8)  # places in the list of estimates that are pooled; the others speak through these
QUANTILE_VOICES = (4, 7, 8)
BASE: Estimate = (0.34, 0.33, 0.33, log(150.0), log(600.0), 0.0)


@dataclass(frozen=True, slots=True)
class Rows:
    """A table as plain columns, oldest first: what is saved."""

    keys: list[int]
    values: list[float]  # ROW_FIELDS a key


class KeyTable:
    """Rows by key, at most `capacity`, least recently learned dropped first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: OrderedDict[int, bytes] = OrderedDict()
        self.get = self._rows.get

    def __len__(self) -> int:
        return len(self._rows)

    def learn(self, key: int, start: Estimate, size: int, log_tokens: float, decay: float) -> None:
        """Add one observation under `key`; a new row starts at its parent's quantiles (`start`)."""
        rows = self._rows
        row = rows.get(key)
        if row is None:
            weight = short = medium = long = 0.0
            log50, log90 = start[3], start[4]
        else:
            weight, short, medium, long, log50, log90 = ROW.unpack(row)
        step = 2.0 / (weight + 2.0)
        if step < MIN_STEP:
            step = MIN_STEP
        rows[key] = ROW.pack(
            weight * decay + 1.0,
            short * decay + (size == 0),
            medium * decay + (size == 1),
            long * decay + (size == 2),
            log50 + step * (0.5 if log_tokens > log50 else -0.5),
            log90 + step * (0.9 if log_tokens > log90 else -0.1),
        )
        if row is not None:
            rows.move_to_end(key)
        elif len(rows) > self.capacity:
            rows.popitem(last=False)

    def newest(self, most: int) -> tuple[list[int], list[bytes]]:
        """Keys and packed rows that were learned last, oldest first."""
        items = list(islice(reversed(self._rows.items()), most))
        items.reverse()
        return [key for key, _ in items], [row for _, row in items]

    def adopt(self, key: int, row: bytes, times: float) -> bool:
        """Take a packed row that has seen more than `times` what ours has."""
        rows = self._rows
        mine = rows.get(key)
        if mine is not None and ROW.unpack(row)[WEIGHT] <= times * ROW.unpack(mine)[WEIGHT]:
            return False
        rows[key] = row
        if len(rows) > self.capacity:
            rows.popitem(last=False)
        return True

    def dump(self) -> Rows:
        return Rows(list(self._rows), [value for row in self._rows.values() for value in ROW.unpack(row)])

    def load(self, rows: Rows) -> None:
        """Take these rows instead of what is there; the newest `capacity` of them."""
        self._rows.clear()
        first = max(0, len(rows.keys) - self.capacity)
        for place in range(first, len(rows.keys)):
            at = place * ROW_FIELDS
            self._rows[rows.keys[place]] = ROW.pack(*rows.values[at : at + ROW_FIELDS])


def estimates(
    table: KeyTable, levels: Sequence[Level], keys: Sequence[int], before: Sequence[Estimate] = (BASE,)
) -> list[Estimate]:
    """What each level says, after what was said `before`. Key 0: the request has nothing at this level."""
    out = list(before)
    add, get, unpack = out.append, table.get, ROW.unpack
    for (_, parent, strength, _, _), key in zip(levels, keys, strict=True):
        up = out[parent]
        row = get(key)  # no row has the key 0
        if row is None:
            add((*up[:5], 0.0) if key and up[5] else up)
            continue
        s, m, ell, up50, up90, _ = up
        weight, short, medium, long, log50, log90 = unpack(row)
        share = 1.0 / (weight + strength)
        own = weight * share
        add(
            (
                (short + strength * s) * share,
                (medium + strength * m) * share,
                (long + strength * ell) * share,
                up50 + own * (log50 - up50),
                up90 + own * (log90 - up90),
                weight,
            )
        )
    return out


def learn(
    table: KeyTable,
    levels: Sequence[Level],
    keys: Sequence[int],
    said: Sequence[Estimate],
    size: int,
    log_tokens: float,
) -> None:
    """One completion into every level it belongs to. `said` is what `estimates` answered before."""
    for level, key in zip(levels, keys, strict=True):
        start = said[level.parent]
        if key and (level.eager or start[5] > 0.0):
            table.learn(key, start, size, log_tokens, level.decay)


def join(*parts: int) -> int:
    """A well mixed 60-bit key from several numbers; the same in every process, never 0."""
    h = 0x9E3779B97F4A7C15
    for part in parts:
        h = ((h ^ part) * 0xBF58476D1CE4E5B9) & MASK
        h ^= h >> 29
    return h or 1
