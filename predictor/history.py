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

ROW_FIELDS = 6  # weight, short, medium, long, and two log tokens
WEIGHT = 0  # where in a row
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
LOG50, LOG90 = 3, 4  # where its quantiles are

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
Plan = tuple[tuple[int, float], ...]  # parent and strength of each level: what a prediction needs
VOICES = (2, 4, 5, 7, 8)  # places in the list of estimates that are pooled; the others speak through these
QUANTILE_VOICES = (4, 7, 8)
BASE: Estimate = (0.34, 0.33, 0.33, log(150.0), log(600.0), 0.0)


def plan_of(levels: Sequence[Level]) -> Plan:
    return tuple((level.parent, level.strength) for level in levels)


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

    def learn(
        self,
        levels: Sequence[Level],
        keys: Sequence[int],
        said: Sequence[Estimate],
        size: int,
        log_tokens: float,
    ) -> None:
        """One completion into every level it belongs to. `said` is what `estimates` answered before.

        A new row starts at its parent's quantiles.
        """
        rows, get, touch = self._rows, self._rows.get, self._rows.move_to_end
        pack, unpack, capacity = ROW.pack, ROW.unpack, self.capacity
        is_short, is_medium, is_long = size == 0, size == 1, size == 2
        for (_, parent, _, decay, eager), key in zip(levels, keys, strict=True):
            if not key:
                continue
            row = get(key)
            if row is not None:
                weight, short, medium, long, log50, log90 = unpack(row)
                step = 2.0 / (weight + 2.0)
                if step < MIN_STEP:
                    step = MIN_STEP
                rows[key] = pack(
                    weight * decay + 1.0,
                    short * decay + is_short,
                    medium * decay + is_medium,
                    long * decay + is_long,
                    log50 + (0.5 * step if log_tokens > log50 else -0.5 * step),
                    log90 + (0.9 * step if log_tokens > log90 else -0.1 * step),
                )
                touch(key)
                continue
            start = said[parent]
            if eager or start[5] > 0.0:
                log50, log90 = start[3], start[4]
                log50 += 0.5 if log_tokens > log50 else -0.5
                log90 += 0.9 if log_tokens > log90 else -0.1
                rows[key] = pack(1.0, is_short, is_medium, is_long, log50, log90)
                if len(rows) > capacity:
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
    table: KeyTable, plan: Plan, keys: Sequence[int], before: Sequence[Estimate] = (BASE,)
) -> list[Estimate]:
    """What each level says, after what was said `before`. Key 0: the request has nothing at this level."""
    out = list(before)
    add, get, unpack = out.append, table.get, ROW.unpack
    for (parent, strength), key in zip(plan, keys, strict=True):
        up = out[parent]
        s, m, ell, up50, up90, up_weight = up
        row = get(key)  # no row has the key 0
        if row is None:
            add((s, m, ell, up50, up90, 0.0) if key and up_weight else up)
            continue
        weight, short, medium, long, log50, log90 = unpack(row)
        share = 1.0 / (weight + strength)
        lean = strength * share
        add(
            (
                short * share + lean * s,
                medium * share + lean * m,
                long * share + lean * ell,
                log50 + lean * (up50 - log50),
                log90 + lean * (up90 - log90),
                weight,
            )
        )
    return out


def join(*parts: int) -> int:
    """A well mixed 60-bit key from several numbers; the same in every process, never 0."""
    h = 0x9E3779B97F4A7C15
    for part in parts:
        h = ((h ^ part) * 0xBF58476D1CE4E5B9) & MASK
        h ^= h >> 29
    return h or 1
