"""Shell: arrival traces as CSV or CSV in gzip: when each request came, its input and output tokens.

Headers of Azure's LLM traces, splitwise-sim, vidur and BurstGPT are taken beside our own. Times are seconds
from the start of the trace, epoch seconds or dates; the last two are made relative to the first request.
What is changed (order, rows left out, times made relative) is said on stderr.
"""

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TextIO

from joulegate.errors import UserError

COLUMNS = {
    "timestamp_s": ("timestamp", "arrival_timestamp", "arrived_at"),
    "input_tokens": ("contexttokens", "prompt_size", "prompt_tokens", "num_prefill_tokens", "request tokens"),
    "output_tokens": (
        "generatedtokens",
        "token_size",
        "completion_tokens",
        "num_decode_tokens",
        "response tokens",
    ),
}
EXPECTED = (
    f"columns {','.join(COLUMNS)}; or TIMESTAMP,ContextTokens,GeneratedTokens, or "
    "arrival_timestamp,prompt_size,token_size"
)
VALUES = "times are seconds or dates (2023-11-16 18:15:46.68), token counts whole numbers"
MAX_TOKENS = 10_000_000
EPOCH = 1e8  # seconds; what is above is counted from 1970
MILLISECONDS = 1e11  # what is above is no count of seconds


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. `at` is in seconds from the start of the trace."""

    at: float
    input_tokens: int
    output_tokens: int
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One request as its file has it. `cells`: of the columns beyond the three, in the trace's `names`."""

    place: int  # of the rows below the header, from 0
    at: float
    input_tokens: int
    output_tokens: int
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows by time; those of one time as in the file. `count` has those that were left out, too."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    count: int


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """Every request in order of time. Raises UserError naming the line that is wrong."""
    trace = read_rows(path)
    if "tenant" not in trace.names:
        return tuple(Arrival(row.at, row.input_tokens, row.output_tokens) for row in trace.rows)
    tenant = trace.names.index("tenant")
    return tuple(
        Arrival(row.at, row.input_tokens, row.output_tokens, row.cells[tenant]) for row in trace.rows
    )


def read_rows(path: Path) -> Trace:
    """The same with every further column. Raises UserError naming the line that is wrong."""
    reading = Reading(path)
    rows = list(reading)
    if not reading.in_order:
        rows.sort(key=lambda row: row.at)
    if reading.start:
        rows = [
            Row(row.place, row.at - reading.start, row.input_tokens, row.output_tokens, row.cells)
            for row in rows
        ]
    return Trace(reading.names, tuple(rows), reading.count)


class Reading:
    """One walk through a trace: rows as they stand in the file, one at a time, but for those without output.

    At its end stderr is told what is to be changed, and `in_order` and `start` say so: rows that are not in
    order are for the caller to sort, and all times count from `start`. Raises UserError naming the line that
    is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: tuple[str, ...] = ()  # of the columns beyond the three
        self.count = 0  # with those that are left out
        self.in_order = True
        self.start = 0.0
        self.first, self.last = inf, -inf  # times, as the file has them

    def __iter__(self) -> Iterator[Row]:
        kept, before = 0, -inf
        for row in self._rows():
            self.count += 1
            self.in_order = self.in_order and row.at >= before
            before = row.at
            if row.output_tokens:
                kept += 1
                self.first, self.last = min(self.first, row.at), max(self.last, row.at)
                yield row
        self._judge(kept)

    def _rows(self) -> Iterator[Row]:
        with _opened(self.path) as file:
            reader = csv.reader(file)
            try:
                header = _header([name.strip() for name in next(reader, [])], self.path)
                self.names = tuple(header.names[place] for place in header.further)
                filled = ((reader.line_num, cells) for cells in reader if cells)
                for place, (line, cells) in enumerate(filled):
                    yield _row(cells, header, place, f"{self.path}:{line}")
            except (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
                raise UserError(f"{self.path}:{reader.line_num + 1}: {error}", "is it a CSV file?") from error

    def _judge(self, kept: int) -> None:
        """What is to be changed, and whether the rest is a trace."""
        if not self.count:
            raise UserError(f"{self.path} holds no requests", EXPECTED)
        if not self.in_order:
            self._say("its rows are not in order of time: sorted")
        if kept < self.count:
            self._say(f"{self.count - kept} of {self.count} rows have no output tokens: left out")
        if not kept:
            raise UserError(f"{self.path}: no row has output tokens", EXPECTED)
        if self.last - self.first >= 1e9:
            raise UserError(
                f"{self.path}: {self.last - self.first:.3g} s between its first and its last request",
                "times must be all from the start of the trace, or all from 1970",
            )
        if self.first >= EPOCH:
            self.start = self.first
            self._say("times are dates: made seconds from the first request")

    def _say(self, what: str) -> None:
        sys.stderr.write(f"{self.path}: {what}\n")


def _opened(path: Path) -> TextIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "check the path") from error


@dataclass(frozen=True, slots=True)
class _Header:
    names: tuple[str, ...]  # as the file has them
    needed: tuple[int, int, int]  # where time, input and output stand
    further: tuple[int, ...]


def _header(names: Sequence[str], path: Path) -> _Header:
    """Raises UserError naming the column that is missing."""
    lower = [name.lower() for name in names]
    found = []
    for name, others in COLUMNS.items():
        there = [known for known in (name, *others) if known in lower]
        if not there:
            shown = f"; the first line has {','.join(names)[:80]!r}" if names else ""
            raise UserError(f"{path}:1: column {name!r} is missing{shown}", EXPECTED)
        found.append(lower.index(there[0]))
    at, inputs, outputs = found
    further = tuple(place for place in range(len(names)) if place not in found)
    return _Header(tuple(names), (at, inputs, outputs), further)


def _row(cells: list[str], header: _Header, place: int, where: str) -> Row:
    if len(cells) < len(header.names):
        raise UserError(
            f"{where}: {len(cells)} columns, the header has {len(header.names)}",
            f"expected {','.join(header.names)[:80]}",
        )
    at, inputs, outputs = (cells[column] for column in header.needed)
    time = header.names[header.needed[0]]
    try:
        row = Row(
            place,
            _seconds(at),
            _whole(inputs),
            _whole(outputs),
            tuple([cells[column] for column in header.further]),
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}", VALUES) from error
    if not 0 <= row.at < MILLISECONDS:
        raise UserError(f"{where}: {time} is {at}", "seconds from the start of the trace or from 1970")
    if not (0 < row.input_tokens <= MAX_TOKENS and 0 <= row.output_tokens <= MAX_TOKENS):
        raise UserError(
            f"{where}: {inputs} input and {outputs} output tokens", f"each must be 1 to {MAX_TOKENS}"
        )
    return row


def _seconds(text: str) -> float:
    """A number as it is, a date as seconds since 1970. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is neither seconds nor a date") from error
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()


def _whole(text: str) -> int:
    """Also as `12.0`, as tables of numbers write it. Raises ValueError."""
    if text.isdecimal():
        return int(text)
    if not (number := float(text)).is_integer():
        raise ValueError(f"{text!r} is no whole number")
    return int(number)
