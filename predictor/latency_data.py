"""Pure: rows of a sweep: what an engine was given, at which clock, and what it took.

Columns (CSV; `profile` writes them, and so are published sweeps): source, gpu, stack, model, tp, phase,
batch, context_tokens (per sequence), new_tokens (per prompt), freq_mhz, latency_ms, power_w,
power_capped, flag, licence; optional latency_se_ms, the standard error of latency_ms where it was measured
several times; optional true_latency_ms and true_power_w where the truth is known (emulated sweeps). By phase:

    decode, decode_*   one iteration: `batch` sequences, one token each, over batch x context_tokens
    prefill            one iteration: `batch` prompts of new_tokens each (context_tokens where that is 0)
    mixed              one iteration: as decode, and new_tokens prompt tokens beside it
    batch_e2e          a whole batch from its first prompt to its last token, as if it were one iteration
    idle               no work; power only

Rows with a flag are not used.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from joulegate.domain import Batch
from joulegate.errors import UserError
from joulegate.units import Seconds, Watts

COLUMNS = (
    "source",
    "gpu",
    "stack",
    "model",
    "tp",
    "phase",
    "batch",
    "context_tokens",
    "new_tokens",
    "freq_mhz",
    "latency_ms",
    "latency_se_ms",
    "power_w",
    "power_capped",
    "flag",
    "licence",
)
OPTIONAL = ("latency_se_ms",)
NEEDED = ("gpu", "model", "tp", "phase", "batch", "freq_mhz", "latency_ms")


@dataclass(frozen=True, slots=True)
class Engine:
    """What one model is learned for. A whole batch and one iteration are not the same thing."""

    source: str
    gpu: str
    stack: str
    model: str
    tp: int
    whole_batch: bool

    @property
    def name(self) -> str:
        kind = " (whole batches)" if self.whole_batch else ""
        return f"{self.gpu} {self.model} tp{self.tp}{kind}"


@dataclass(frozen=True, slots=True)
class Row:
    phase: str
    batch: Batch
    clock: float  # MHz
    seconds: Seconds
    watts: Watts | None  # per GPU
    capped: bool  # the board's power limit, not the clock asked for, set the pace
    true_seconds: Seconds | None = None
    true_watts: Watts | None = None
    error: Seconds | None = None  # standard error of `seconds`, where it is known


@dataclass(frozen=True, slots=True)
class Sweep:
    """Every usable row of one engine."""

    engine: Engine
    rows: tuple[Row, ...]
    idle_watts: Watts | None


def read_sweeps(lines: Iterable[str], name: str) -> tuple[list[Sweep], int]:
    """(sweeps in order of appearance, rows left out because flagged). `name` is for the error.

    Raises UserError naming the line and column that is wrong.
    """
    rows: dict[Engine, list[Row]] = {}
    idle: dict[Engine, Watts] = {}
    flagged = 0
    for line, record in _records(lines, name):
        if _text(record, "flag"):
            flagged += 1
            continue
        try:
            engine, row = _row(record)
        except ValueError as error:
            raise UserError(
                f"{name}:{line}: {error}", "docs/latency-model.md says what belongs there"
            ) from error
        if row.phase == "idle":
            idle[engine] = row.watts or Watts(0.0)
        else:
            rows.setdefault(engine, []).append(row)
    return [Sweep(engine, tuple(kept), idle.get(engine)) for engine, kept in rows.items()], flagged


def merged(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """Sweeps of the same engine out of several files become one."""
    found: dict[Engine, Sweep] = {}
    for sweep in sweeps:
        before = found.get(sweep.engine)
        if before is not None:
            idle = before.idle_watts if sweep.idle_watts is None else sweep.idle_watts
            sweep = Sweep(sweep.engine, before.rows + sweep.rows, idle)
        found[sweep.engine] = sweep
    return list(found.values())


def _records(lines: Iterable[str], name: str) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """(line, cells by column) of every row."""
    reader = csv.DictReader(lines)
    try:
        missing = [column for column in NEEDED if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{name}: no column {', '.join(missing)}", f"columns are {','.join(COLUMNS)}")
        for record in reader:
            yield reader.line_num, record
    except csv.Error as error:
        raise UserError(f"{name}:{reader.line_num}: not CSV: {error}") from error


def _row(record: Mapping[str, str | None]) -> tuple[Engine, Row]:
    phase = _text(record, "phase")
    batch = _count(record, "batch")
    context, new = _number(record, "context_tokens"), _number(record, "new_tokens")
    engine = Engine(
        source=_text(record, "source"),
        gpu=_text(record, "gpu"),
        stack=_text(record, "stack"),
        model=_text(record, "model"),
        tp=_count(record, "tp"),
        whole_batch=phase == "batch_e2e",
    )
    row = Row(
        phase=phase,
        batch=_work(phase, batch, context, new),
        clock=_number(record, "freq_mhz"),
        seconds=Seconds(_number(record, "latency_ms") / 1000.0),
        watts=_watts(record, "power_w"),
        capped=_text(record, "power_capped") not in {"0", "", "False", "false"},
        true_seconds=_seconds(record, "true_latency_ms"),
        true_watts=_watts(record, "true_power_w"),
        error=_seconds(record, "latency_se_ms"),
    )
    if engine.tp < 1:
        raise ValueError("tp: must be at least 1")
    for column, value in (("latency_ms", row.seconds), ("freq_mhz", row.clock)):
        if phase != "idle" and value <= 0.0:
            raise ValueError(f"{column}: must be above 0; flag the row if it is not to be used")
    return engine, row


def _work(phase: str, batch: int, context: float, new: float) -> Batch:
    if phase == "idle":
        return Batch()
    if phase not in {"prefill", "mixed", "batch_e2e"} and not phase.startswith("decode"):
        raise ValueError(f"phase: {phase!r} is none of decode, prefill, mixed, batch_e2e, idle")
    if batch < 1:
        raise ValueError("batch: must be at least 1")
    if phase == "prefill":
        tokens = new or context
        before = context if new else 0.0
        if tokens < 1.0:
            raise ValueError("new_tokens: a prefill has prompt tokens")
        return Batch(
            prefill_tokens=int(batch * tokens), prefill_attention=batch * tokens * (before + tokens / 2)
        )
    if phase == "mixed":
        return Batch(batch, batch * context, int(new), new * new / 2)
    return Batch(batch, batch * context)


def phase_of(batch: Batch) -> str:
    """The phase of one iteration with work in it."""
    if not batch.prefill_tokens:
        return "decode"
    return "mixed" if batch.decoding else "prefill"


def _text(record: Mapping[str, str | None], column: str) -> str:
    """A cell; empty where the row or the file has none."""
    return (record.get(column) or "").strip()


def _number(record: Mapping[str, str | None], column: str) -> float:
    """A cell as a number that is not negative; 0 where it is empty."""
    text = _text(record, column) or "0"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{column}: {text!r} is not a number") from None
    if not isfinite(value) or value < 0.0:
        raise ValueError(f"{column}: {text!r}; leave it empty where nothing was read, or flag the row")
    return value


def _count(record: Mapping[str, str | None], column: str) -> int:
    return int(_number(record, column))


def _seconds(record: Mapping[str, str | None], column: str) -> Seconds | None:
    return Seconds(_number(record, column) / 1000.0) if _text(record, column) else None


def _watts(record: Mapping[str, str | None], column: str) -> Watts | None:
    return Watts(_number(record, column)) if _text(record, column) else None
