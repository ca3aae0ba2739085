"""Shell: a trace on disk as fixed-width records, so that simulations may walk through it again and again.

A trace may be longer than memory, and its CSV takes a while to read. So it is read once, in batches, and
written down in 16 bytes a request. Rows that are not in order of time are sorted batch by batch, then the
batches are merged.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from joulegate.arrivals import Reading, Row
from joulegate.units import Seconds
from simulator.streams import Merged
from simulator.workload import PART, Load, Rows, held

RECORD = np.dtype([("at", "<f8"), ("input", "<i4"), ("output", "<i4")])
SORTED = 4 * PART  # rows that are sorted at once
FEW = 256  # records of a batch that are read at once, where there are many batches


@dataclass(frozen=True, slots=True)
class Spool:
    """Records of a file, in order of time; the first of all arrives at zero."""

    path: Path
    span: Seconds
    start: float  # the time in the file that is zero
    first: int  # record
    count: int
    at_once: int = PART  # records that are read

    def parts(self) -> Iterator[Rows]:
        with self.path.open("rb") as file:
            file.seek(self.first * RECORD.itemsize)
            left = self.count
            while left > 0:
                read = np.fromfile(file, RECORD, min(left, self.at_once))
                left -= len(read)
                yield Rows(
                    read["at"] - self.start, read["input"].astype(np.int64), read["output"].astype(np.int64)
                )


def spooled(path: Path, folder: Path) -> Spool:
    """A trace as CSV, written down in `folder` as it is read. Raises UserError."""
    reading = Reading(path)
    with _new(folder) as file:
        counts = [_write(file, rows) for rows in _batches(reading)]
    span = Seconds(reading.last - reading.first)
    whole = Spool(Path(file.name), span, reading.first, 0, sum(counts))
    return whole if reading.in_order else _sorted(whole, folder)


def _sorted(whole: Spool, folder: Path) -> Spool:
    """Batches, each in order, merged."""
    starts = range(0, whole.count, SORTED)
    few = max(FEW, PART // len(starts))
    batches = [
        replace(whole, first=first, count=min(SORTED, whole.count - first), start=0.0, at_once=few)
        for first in starts
    ]
    with _new(folder) as file:
        for part in Merged(tuple(batches)).parts():
            _store(file, part)
    whole.path.unlink()
    return replace(whole, path=Path(file.name))


def _new(folder: Path) -> BinaryIO:
    return tempfile.NamedTemporaryFile(dir=folder, suffix=".trace", delete=False)  # type: ignore[return-value]


def _batches(rows: Reading) -> Iterator[list[Row]]:
    walk = iter(rows)
    while batch := list(islice(walk, SORTED)):
        yield batch


def _write(file: BinaryIO, batch: list[Row]) -> int:
    """A batch, by time."""
    batch.sort(key=lambda row: row.at)
    at = np.array([row.at for row in batch])
    tokens_in = np.array([row.input_tokens for row in batch])
    _store(file, Rows(at, tokens_in, np.array([row.output_tokens for row in batch])))
    return len(batch)


def _store(file: BinaryIO, rows: Rows) -> None:
    records = np.empty(len(rows), RECORD)
    records["at"], records["input"], records["output"] = rows.at, rows.input, rows.output
    file.write(records.tobytes())


def read_load(path: Path) -> Load:
    """A trace that is held whole, its first arrival at zero. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        return held(spooled(path, Path(folder)))
