"""Shell: arrival traces, `timestamp_s,input_tokens,output_tokens[,tenant]` as CSV or CSV in gzip."""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from joulegate.errors import UserError

REQUIRED = ("timestamp_s", "input_tokens", "output_tokens")
MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. `at` is in seconds from the start of the trace."""

    at: float
    input_tokens: int
    output_tokens: int
    tenant: str = ""


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """Every row, in order of time. Raises UserError naming the line that is wrong."""
    with opened(path) as file:
        arrivals = tuple(rows(file, path))
    if not arrivals:
        raise UserError(f"{path} holds no requests", f"expected rows of {','.join(REQUIRED)}")
    return arrivals


def opened(path: Path) -> TextIO:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def rows(file: TextIO, path: Path) -> Iterator[Arrival]:
    """Arrivals one by one, for traces that are too long to hold. Raises UserError."""
    reader = csv.reader(file)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise UserError(
                f"{path}:1: column {missing[0]!r} is missing",
                f"the first line must be {','.join(REQUIRED)} with an optional tenant",
            )
        columns = [header.index(name) for name in REQUIRED]
        tenant = header.index("tenant") if "tenant" in header else None
        before = float("-inf")
        for row in reader:
            if not row:
                continue
            arrival = _arrival(row, columns, tenant, f"{path}:{reader.line_num}")
            if arrival.at < before:
                raise UserError(
                    f"{path}:{reader.line_num}: time goes back from {before:g} to {arrival.at:g} s",
                    "sort the trace by timestamp_s",
                )
            before = arrival.at
            yield arrival
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}:{reader.line_num + 1}: {error}", "is it a CSV file?") from error


def _arrival(row: list[str], columns: list[int], tenant: int | None, where: str) -> Arrival:
    try:
        at, inputs, outputs = (row[column] for column in columns)
        arrival = Arrival(
            float(at), _whole(inputs), _whole(outputs), row[tenant] if tenant is not None else ""
        )
    except IndexError as error:
        raise UserError(f"{where}: {len(row)} columns, the header has more") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}", "times are seconds, token counts whole numbers") from error
    if not 0 <= arrival.at < 1e9:
        raise UserError(f"{where}: timestamp_s is {at}", "seconds from the start of the trace, not negative")
    if not (0 < arrival.input_tokens <= MAX_TOKENS and 0 < arrival.output_tokens <= MAX_TOKENS):
        raise UserError(
            f"{where}: {inputs} input and {outputs} output tokens", f"each must be 1 to {MAX_TOKENS}"
        )
    return arrival


def _whole(text: str) -> int:
    """Also as `12.0`, as tables of numbers write it. Raises ValueError."""
    if text.isdecimal():
        return int(text)
    if not (number := float(text)).is_integer():
        raise ValueError(f"{text!r} is no whole number")
    return int(number)


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a trace, how fast, and how long its requests may be."""

    start: float = 0.0  # seconds into the trace
    duration: float | None = None  # seconds of the trace
    limit: int | None = None  # requests
    speed: float = 1.0
    clip_input: int | None = None  # tokens
    clip_output: int | None = None

    def cut(self, arrivals: tuple[Arrival, ...]) -> tuple[Arrival, ...]:
        """Arrivals as they are to be sent: times from the start of the window, already sped up."""
        end = float("inf") if self.duration is None else self.start + self.duration
        inside = [arrival for arrival in arrivals if self.start <= arrival.at < end]
        return tuple(
            Arrival(
                (arrival.at - self.start) / self.speed,
                min(arrival.input_tokens, self.clip_input or arrival.input_tokens),
                min(arrival.output_tokens, self.clip_output or arrival.output_tokens),
                arrival.tenant,
            )
            for arrival in inside[: self.limit]
        )
