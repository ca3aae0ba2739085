"""Shell: arrival traces as CSV or CSV in gzip: when each request came, its input and output tokens.

Headers of Azure's LLM traces, splitwise-sim, vidur and BurstGPT are taken beside our own. Times are seconds
from the start of the trace, epoch seconds or dates; the last two are made relative to the first request.
What is changed (order, rows left out, times made relative) is said on stderr.
"""

import csv
import gzip
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
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
    with _opened(path) as file:
        reader = csv.reader(file)
        try:
            header = _header([name.strip() for name in next(reader, [])], path)
            filled = ((reader.line_num, cells) for cells in reader if cells)
            rows = [
                _row(cells, header, place, f"{path}:{line}") for place, (line, cells) in enumerate(filled)
            ]
        except (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}:{reader.line_num + 1}: {error}", "is it a CSV file?") from error
    if not rows:
        raise UserError(f"{path} holds no requests", EXPECTED)
    return _made(rows, header, path)


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


def _made(rows: list[Row], header: _Header, path: Path) -> Trace:
    """In order, relative, and without requests that generated nothing; what was done is said."""
    count = len(rows)
    if any(after.at < before.at for before, after in pairwise(rows)):
        rows.sort(key=lambda row: row.at)
        _say(path, "its rows are not in order of time: sorted")
    kept = [row for row in rows if row.output_tokens]
    if len(kept) < count:
        _say(path, f"{count - len(kept)} of {count} rows have no output tokens: left out")
    if not kept:
        raise UserError(f"{path}: no row has output tokens", EXPECTED)
    first, last = kept[0].at, kept[-1].at
    if last - first >= 1e9:
        raise UserError(
            f"{path}: {last - first:.3g} s between its first and its last request",
            "times must be all from the start of the trace, or all from 1970",
        )
    if first >= EPOCH:
        kept = [
            Row(row.place, row.at - first, row.input_tokens, row.output_tokens, row.cells) for row in kept
        ]
        _say(path, "times are dates: made seconds from the first request")
    return Trace(tuple(header.names[place] for place in header.further), tuple(kept), count)


def _say(path: Path, what: str) -> None:
    sys.stderr.write(f"{path}: {what}\n")
