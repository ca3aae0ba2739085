"""Shell: the CSV of a sweep, written row by row: a sweep that was interrupted goes on where it stopped."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulegate.errors import UserError
from joulegate.units import MegaHertz
from predictor.latency_data import COLUMNS, OPTIONAL
from predictor.sweep import Key, Point


@dataclass(frozen=True, slots=True)
class Subject:
    """What was swept: the same in every row of a file."""

    gpu: str
    stack: str
    model: str
    tp: int

    def columns(self) -> Mapping[str, str]:
        return {
            "source": "profile",
            "gpu": self.gpu,
            "stack": self.stack,
            "model": self.model,
            "tp": str(self.tp),
            "licence": "",
        }


def done(path: Path, subject: Subject) -> frozenset[Key]:
    """Points the file has. Raises UserError when it is not a sweep of this subject."""
    if not path.exists():
        return frozenset()
    keys = set()
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {*COLUMNS} - {*OPTIONAL} <= {*(reader.fieldnames or ())}:
            raise UserError(f"{path}: exists, and is not a sweep", "give --out another name")
        for record in reader:
            other = {name: record[name] for name in ("gpu", "stack", "model", "tp")}
            ours = subject.columns()
            if any(other[name] != ours[name] for name in other):
                raise UserError(f"{path}: is a sweep of {other}, not of {subject}", "give --out another name")
            numbers = (
                int(float(record[name])) for name in ("batch", "context_tokens", "new_tokens", "freq_mhz")
            )
            batch, context, new, clock = numbers
            keys.add((record["phase"], batch, context, new, clock))
    return frozenset(keys)


def append(
    path: Path, subject: Subject, point: Point, latency_ms: float, watts: float | None, **more: str
) -> None:
    """One row, on disk when this returns."""
    columns = _columns(path)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns or COLUMNS, restval="", extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow(
            {
                **subject.columns(),
                "phase": point.phase,
                "batch": point.batch,
                "context_tokens": point.context,
                "new_tokens": point.new_tokens,
                "freq_mhz": point.clock,
                "latency_ms": f"{latency_ms:.5g}",
                "power_w": "" if watts is None else f"{watts:.5g}",
                **more,
            }
        )
        file.flush()
        os.fsync(file.fileno())


def _columns(path: Path) -> Sequence[str]:
    """Of the file as it is: one begun by an older version has fewer. Empty, if there is none."""
    if not path.exists():
        return ()
    with path.open(newline="") as file:
        return csv.DictReader(file).fieldnames or ()


def idle_point(clock: MegaHertz) -> Point:
    return Point("idle", 0, 0, 0, clock)
