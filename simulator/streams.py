"""Pure: streams of arrivals made of others: scaled, cut, merged, turned, repeated, or drawn from one.

Theory of operation. Every part is made when it is asked for. Where chance moves rows by up to SPREAD seconds,
rows wait until no later one can come before them. What is drawn by chance does not depend on how the source
comes in parts: a generator that draws for the n-th row is first set to the n-th draw (`_draws`), so parts
give what one draw for all rows at once would.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil, floor, inf

import numpy as np

from joulegate.units import Seconds
from simulator.workload import NO_ROWS, PART, Bools, Floats, Load, Rows, Stream, joined, pieces

SPREAD = 30.0  # seconds around the original at which further copies of a row arrive


def _draws(seed: int, skipped: int) -> np.random.Generator:
    """As `default_rng(seed)` is after so many numbers of 64 bits."""
    return np.random.Generator(np.random.PCG64(seed).advance(skipped))


def _sorted(rows: Rows) -> Rows:
    return rows.taken(np.argsort(rows.at, kind="stable"))


def _in_order(parts: Iterable[tuple[Rows, float]]) -> Iterator[Rows]:
    """Rows sorted by time. Nothing that comes after a part is earlier than the bound given with it."""
    waiting = NO_ROWS
    for part, bound in parts:
        waiting = _sorted(joined([waiting, part]))
        ready = int(np.searchsorted(waiting.at, bound, side="left"))
        if ready:
            yield waiting.taken(slice(ready))
            waiting = waiting.taken(slice(ready, None))
    if len(waiting):
        yield waiting


def _reflected(at: Floats, span: float) -> Floats:
    """Times beyond the ends, mirrored at them."""
    at = np.abs(at)
    return np.where(at > span, 2.0 * span - at, at)


@dataclass(frozen=True, slots=True)
class _Made:
    """Made of another stream; as long, where it does not say otherwise."""

    source: Stream

    @property
    def span(self) -> Seconds:
        return self.source.span


@dataclass(frozen=True, slots=True)
class Scaled(_Made):
    """`factor` times a source: each row floor(factor) + Bernoulli(rest) times.

    The first copy keeps its time, further ones are U(-30, 30) s away, reflected at the ends.
    """

    count: int  # rows of the source
    factor: float
    seed: int

    def parts(self) -> Iterator[Rows]:
        return _in_order(self._copies())

    def _copies(self) -> Iterator[tuple[Rows, float]]:
        last = floor(self.factor)  # the copy that only some rows have
        chance = _draws(self.seed, 0)
        moves = [_draws(self.seed, copy * self.count) for copy in range(1, last + 1)]
        for part in _small_parts(self.source, self.factor):
            some = part.taken(chance.random(len(part)) < self.factor % 1.0)
            made = [part if last else some]
            for copy, move in enumerate(moves, 1):
                rows = part if copy < last else some
                away = move.uniform(-SPREAD, SPREAD, len(rows))
                made.append(Rows(_reflected(rows.at + away, self.span), rows.input, rows.output, rows.cached))
            yield joined(made), float(part.at[-1]) - SPREAD


def _small_parts(source: Stream, factor: float) -> Iterator[Rows]:
    """Parts of which so many copies are about a PART."""
    for part in source.parts():
        yield from pieces(part, max(1, PART // max(1, ceil(factor))))


@dataclass(frozen=True, slots=True)
class Half(_Made):
    """One half of the time of a source, from its own zero."""

    second: bool

    @property
    def span(self) -> Seconds:
        return Seconds(0.5 * self.source.span)

    def parts(self) -> Iterator[Rows]:
        middle = self.span
        for part in self.source.parts():
            border = int(np.searchsorted(part.at, middle, side="left"))
            if self.second and border < len(part):
                yield part.taken(slice(border, None), part.at[border:] - middle)
            elif not self.second and border:
                yield part.taken(slice(border))
            if not self.second and border < len(part):
                return


@dataclass(frozen=True, slots=True)
class Kept(_Made):
    """The rows of a source that a rule keeps."""

    rule: Callable[[Rows], Bools]

    def parts(self) -> Iterator[Rows]:
        for part in self.source.parts():
            kept = part.taken(self.rule(part))
            if len(kept):
                yield kept


@dataclass(frozen=True, slots=True)
class Merged:
    """Several sources at the same time; of rows of one time those of the first source come first."""

    sources: tuple[Stream, ...]

    @property
    def span(self) -> Seconds:
        return Seconds(max(source.span for source in self.sources))

    def parts(self) -> Iterator[Rows]:
        walks = [source.parts() for source in self.sources]
        waiting = [NO_ROWS] * len(walks)
        known = [-inf] * len(walks)  # up to when all rows of a source are there, that time itself left out
        while min(known) < inf:
            n = known.index(min(known))
            part = next(walks[n], NO_ROWS)
            known[n] = float(part.at[-1]) if len(part) else inf
            waiting[n] = joined([waiting[n], part])
            ready = [int(np.searchsorted(rows.at, min(known), side="left")) for rows in waiting]
            if any(ready):
                yield _sorted(joined([rows.taken(slice(r)) for rows, r in zip(waiting, ready, strict=True)]))
                waiting = [rows.taken(slice(r, None)) for rows, r in zip(waiting, ready, strict=True)]


@dataclass(frozen=True, slots=True)
class Turned(_Made):
    """A source begun `seconds` later, what stood before put at its end."""

    seconds: float

    def parts(self) -> Iterator[Rows]:
        before = Kept(self.source, lambda rows: rows.at < self.seconds)
        after = Kept(self.source, lambda rows: rows.at >= self.seconds)
        return Merged((_Moved(before, self.seconds), _Moved(after, self.seconds))).parts()


@dataclass(frozen=True, slots=True)
class _Moved(_Made):
    """Every row so many seconds earlier; round the ends."""

    seconds: float

    def parts(self) -> Iterator[Rows]:
        for part in self.source.parts():
            yield part.taken(slice(None), (part.at - self.seconds) % self.span)


@dataclass(frozen=True, slots=True)
class Repeated:
    """Copies of a source end to end until `span` is full, each turned by a random time."""

    source: Stream
    span: Seconds
    seed: int

    def parts(self) -> Iterator[Rows]:
        rng, length = np.random.default_rng(self.seed), self.source.span
        for n in range(ceil(self.span / length)):
            for part in Turned(self.source, float(rng.uniform(0.0, length))).parts():
                at = part.at + n * length
                inside = int(np.searchsorted(at, self.span, side="left"))
                if inside:
                    yield part.taken(slice(inside), at[:inside])


@dataclass(frozen=True, slots=True)
class Followed(_Made):
    """Each row of a source `factors(at)` times, as in `Scaled`: the whole part surely, the rest by chance."""

    count: int  # rows of the source
    factors: Callable[[Floats], Floats]
    most: float  # of the factors
    seed: int

    def parts(self) -> Iterator[Rows]:
        return _in_order(self._copies())

    def _copies(self) -> Iterator[tuple[Rows, float]]:
        chance, move = _draws(self.seed, 0), _draws(self.seed, self.count)
        for part in _small_parts(self.source, self.most):
            factors = self.factors(part.at)
            copies = (np.floor(factors) + (chance.random(len(part)) < factors % 1.0)).astype(np.int64)
            rows = np.repeat(np.arange(len(part)), copies)
            first = np.diff(rows, prepend=-1) > 0
            away = np.where(first, 0.0, move.uniform(-SPREAD, SPREAD, len(rows)))
            at = _reflected(part.at[rows] + away, self.span)
            yield part.taken(rows, at), float(part.at[-1]) - SPREAD


def constant(stream: Stream, count: int, rate: float, span: Seconds, seed: int) -> Load:
    """`rate` requests a second at uniformly random times, lengths drawn from the `count` rows of a stream."""
    rng = np.random.default_rng(seed)
    wanted = round(rate * span)
    at = np.sort(rng.uniform(0.0, span, wanted))
    rows = rng.integers(0, count, wanted)
    tokens_in, tokens_out = np.zeros((2, wanted), dtype=np.int64)
    first = 0
    for part in stream.parts():
        here = (rows >= first) & (rows < first + len(part))
        tokens_in[here], tokens_out[here] = part.input[rows[here] - first], part.output[rows[here] - first]
        first += len(part)
    return Load(at, tokens_in, tokens_out, span)
