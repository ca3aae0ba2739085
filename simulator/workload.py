"""Pure: arrivals for a simulation: what a stream of them is, and what can be said of one.

Theory of operation. A stream is walked through from its start as often as is asked, and makes its rows as it
goes, part by part, in order of time; nobody holds all of them. `Load` is the stream that is held whole, for
what is short. `simulator.streams` makes streams of others: scaled, cut, merged, repeated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from control.floor import Demand
from joulegate.domain import Cuts
from joulegate.units import Seconds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
PART = 16_384  # rows that are made or read at once
LOOKED_AT = 10.0  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some requests in order of arrival; seconds from the start of the stream, tokens."""

    at: Floats
    input: Ints
    output: Ints
    cached: Ints | None = None  # of the input, what the engine has in its prefix cache; None: nothing

    def __len__(self) -> int:
        return len(self.at)

    def taken(self, rows: slice | Bools | Ints, at: Floats | None = None) -> "Rows":
        """Some of them; at other times where given."""
        cached = None if self.cached is None else self.cached[rows]
        return Rows(self.at[rows] if at is None else at, self.input[rows], self.output[rows], cached)


NO_ROWS = Rows(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other. What is in the prefix cache is kept where all of them know it."""
    parts = [part for part in parts if len(part)] or [NO_ROWS]
    if len(parts) == 1:
        return parts[0]
    known = [part.cached for part in parts if part.cached is not None]
    return Rows(
        np.concatenate([part.at for part in parts]),
        np.concatenate([part.input for part in parts]),
        np.concatenate([part.output for part in parts]),
        np.concatenate(known) if len(known) == len(parts) else None,
    )


class Stream(Protocol):
    """Requests in order of arrival, from zero on."""

    @property
    def span(self) -> Seconds:
        """Of the whole stream, idle ends included."""
        ...

    def parts(self) -> Iterator[Rows]:
        """All rows from the first on, none of the parts empty."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """A stream that is held whole."""

    at: Floats
    input: Ints
    output: Ints
    span: Seconds
    cached: Ints | None = None

    def __len__(self) -> int:
        return len(self.at)

    def parts(self) -> Iterator[Rows]:
        yield from pieces(Rows(self.at, self.input, self.output, self.cached), PART)


def pieces(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows in parts of that size."""
    for first in range(0, len(rows), size):
        yield rows.taken(slice(first, first + size))


def held(stream: Stream) -> Load:
    """The whole stream, for who needs all of it at hand."""
    rows = joined(list(stream.parts()))
    return Load(rows.at, rows.input, rows.output, stream.span, rows.cached)


@dataclass(frozen=True, slots=True)
class Census:
    """What a stream brings in all. `peak`: requests a second in the busiest minute of its clock."""

    count: int
    input: int
    output: int
    peak: float

    def demand(self, rate: float) -> Demand:
        """So many requests a second of the mean lengths."""
        tokens = self.input / self.count
        return Demand(rate, tokens, tokens, self.output / self.count)


def census(stream: Stream) -> Census:
    count = total_in = total_out = most = 0
    last, before = -1, 0  # the minute that the last part ended in, and what it has had so far
    for part in stream.parts():
        count += len(part)
        total_in += int(part.input.sum())
        total_out += int(part.output.sum())
        minutes, came = np.unique((part.at // 60.0).astype(np.int64), return_counts=True)
        came[0] += before if minutes[0] == last else 0
        most = max(most, int(came.max()))
        last, before = int(minutes[-1]), int(came[-1])
    return Census(count, total_in, total_out, most / 60.0)


def by_type(rows: Rows, cuts: Cuts) -> tuple[Ints, Ints]:
    """Input size and output size of each row."""
    inputs = np.searchsorted(np.array(cuts.input), rows.input, side="right")
    return inputs, np.searchsorted(np.array(cuts.output), rows.output, side="right")


def by_input(stream: Stream, cuts: Cuts) -> list[int]:
    """How many requests of each input size it has."""
    counts = np.zeros(3, dtype=np.int64)
    for part in stream.parts():
        counts += np.bincount(by_type(part, cuts)[0], minlength=3)
    return [int(count) for count in counts]


def busiest(stream: Stream, span: float) -> float:
    """When the so many seconds with the most requests begin."""
    most, start, at = 0, 0.0, np.zeros(0)
    for times in chain((part.at for part in stream.parts()), [np.array([np.inf])]):
        at = np.concatenate([at, times])
        done = int(np.searchsorted(at + span, times[-1], side="right"))  # whose seconds are over
        if done:
            counts = np.searchsorted(at, at[:done] + span, side="left") - np.arange(done)
            first = int(np.argmax(counts))
            if counts[first] > most:
                most, start = int(counts[first]), float(at[first])
            at = at[done:]
    return start


class Foresight:
    """What a load will bring, which only an oracle knows: three figures for each ten seconds."""

    def __init__(self, load: Stream) -> None:
        found: list[tuple[int, Floats]] = []  # first bin, and what came in it and the next ones
        for part in load.parts():
            bins = (part.at // LOOKED_AT).astype(np.int64)
            weights = (np.ones(len(part)), part.input, part.output)
            found.append((int(bins[0]), np.array([np.bincount(bins - bins[0], each) for each in weights])))
        self._rates = np.zeros((3, found[-1][0] + found[-1][1].shape[1]))
        for first, each in found:
            self._rates[:, first : first + each.shape[1]] += each
        self._rates /= LOOKED_AT

    def mean(self, now: float, within: float) -> Demand:
        """Of what arrives from `now` on."""
        requests, tokens, output = self._seen(now, within).mean(axis=1)
        tokens, output = tokens / max(requests, 1e-9), output / max(requests, 1e-9)
        return Demand(requests, tokens, tokens, output)

    def most(self, now: float, within: float, like: Demand) -> float:
        """Requests per second like those, of which the busiest ten seconds from `now` on have the work."""
        each = np.array([[1.0], [like.input_tokens], [like.output_tokens]])
        return float((self._seen(now, within) / each).max())

    def _seen(self, now: float, within: float) -> Floats:
        first = min(int(now // LOOKED_AT), self._rates.shape[1] - 1)
        return self._rates[:, first : first + ceil(within / LOOKED_AT)]
