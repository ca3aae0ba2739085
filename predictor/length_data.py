"""Shell: rows to learn from and to be judged on: prompts (JSONL, gzip or not) and arrival traces (CSV).

Prompts: an object a line with `output_tokens` and `model`; `prompt`, `input_tokens`, `source`, `prompt_id`,
`licence` and any other column (a tenant, a group) where present. Traces: timestamp_s, input_tokens,
output_tokens; `parent_row` (row that a turn continues, from 0) where present.
"""

import csv
import gzip
import io
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO
from zlib import crc32

import orjson

from joulegate.domain import LengthQuery
from joulegate.errors import UserError
from predictor.features import ends
from predictor.length_evaluate import Sample, StreamName

CHARACTERS_PER_TOKEN = 4.0  # where a row does not say how long its prompt is in tokens
HELD_OUT = 5  # prompts whose crc32 is divisible by this are never learned from
MOST_TOKENS = 1 << 31
ARRIVAL = ("timestamp_s", "input_tokens", "output_tokens")  # what a trace must have


@dataclass(frozen=True, slots=True)
class Row:
    """One answered request of a file."""

    sample: Sample
    stream: StreamName
    prompt_id: str
    licence: str

    @property
    def held_out(self) -> bool:
        return crc32(self.prompt_id.encode()) % HELD_OUT == 0


def read_prompts(paths: Sequence[Path], tenant_key: str | None = None) -> list[Row]:
    """Rows of JSONL files in file order; raises UserError with file and line where one cannot be read."""
    rows = []
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(orjson.loads(line), path, tenant_key))
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: not a row of prompts: {error}",
                    "each line is an object with prompt, output_tokens and model",
                ) from error
    if not rows:
        raise UserError(f"no rows in {', '.join(map(str, paths))}")
    return rows


def _row(line: object, path: Path, tenant_key: str | None) -> Row:
    if not isinstance(line, dict):
        raise ValueError("not an object")
    prompt = line.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: {_short(prompt)} is not text")
    if line.get("model") is None:
        raise ValueError("model: is missing")
    source = str(line.get("source", path.name.partition(".")[0]))
    stream = StreamName(source, str(line["model"]))
    if tenant_key is not None and tenant_key not in line:
        raise UserError(f"{path}: no column {tenant_key!r}", f"columns: {', '.join(sorted(line))}")
    told = line.get("input_tokens") is not None
    head, tail = ends(prompt)
    query = LengthQuery(
        model=alias(stream),
        key=str(line[tenant_key]) if tenant_key is not None else "",
        input_tokens=_tokens(line, "input_tokens") if told else int(len(prompt) / CHARACTERS_PER_TOKEN),
        text_head=head,
        text_tail=tail,
    )
    return Row(
        Sample(query, _tokens(line, "output_tokens")),
        stream,
        str(line.get("prompt_id", crc32(prompt.encode()))),
        str(line.get("licence", "")),
    )


def alias(stream: StreamName) -> str:
    """The model name that a stream learns under: one endpoint answering one kind of traffic."""
    return f"{stream.source}/{stream.model}"


def _number(line: Mapping[str, object], key: str) -> float:
    """Raises ValueError naming the key."""
    value = line.get(key)
    if value is None or value == "":
        raise ValueError(f"{key}: is missing")
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"{key}: {_short(value)} is not a number")
    return number


def _tokens(line: Mapping[str, object], key: str) -> int:
    number = _number(line, key)
    if not 0 <= number < MOST_TOKENS:
        raise ValueError(f"{key}: {_short(line[key])} is no number of tokens")
    return int(number)


def _short(value: object) -> str:
    """As it is shown in an error."""
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def streams(rows: Sequence[Row]) -> dict[StreamName, list[Sample]]:
    """Rows by stream, each in file order."""
    out: dict[StreamName, list[Sample]] = defaultdict(list)
    for row in rows:
        out[row.stream].append(row.sample)
    return dict(out)


def read_traces(paths: Sequence[Path], tenant_key: str | None) -> dict[StreamName, list[Sample]]:
    """One stream of all traces by time. `tenant_key` is a column, or "trace" for the file's name."""
    arrivals: list[tuple[float, int, Sample]] = []
    for path in paths:
        offset = len(arrivals)
        for place, line in enumerate(_records(path)):
            try:
                sample = _arrival(line, path, offset, place, tenant_key)
            except ValueError as error:
                raise UserError(
                    f"{path}:{place + 2}: not a row of a trace: {error}", f"columns: {', '.join(ARRIVAL)}"
                ) from error
            arrivals.append((sample.at, offset + place, sample))
    if not arrivals:
        raise UserError(f"no rows in {', '.join(map(str, paths))}")
    arrivals.sort(key=lambda arrival: arrival[:2])
    name = StreamName("+".join(path.name.partition(".")[0] for path in paths), "trace")
    return {name: [sample for _, _, sample in arrivals]}


def _arrival(line: Mapping[str, str], path: Path, offset: int, place: int, tenant_key: str | None) -> Sample:
    key = ""
    if tenant_key == "trace":
        key = path.name.partition(".")[0]
    elif tenant_key is not None:
        if tenant_key not in line:
            raise UserError(f"{path}: no column {tenant_key!r}", f"columns: trace, {', '.join(sorted(line))}")
        key = line[tenant_key]
    row = int(_number(line, "parent_row")) if line.get("parent_row") else -1
    query = LengthQuery(
        model="trace",
        key=key,
        input_tokens=_tokens(line, "input_tokens"),
        parent=offset + row + 1 if row >= 0 else 0,
        turn=offset + place + 1,
    )
    return Sample(query, _tokens(line, "output_tokens"), _number(line, "timestamp_s"))


def read_arrivals(path: Path) -> tuple[list[float], list[int], list[int]]:
    """(seconds, input tokens, output tokens) of a trace, by time."""
    (samples,) = read_traces([path], None).values()
    return (
        [sample.at for sample in samples],
        [sample.query.input_tokens for sample in samples],
        [sample.output_tokens for sample in samples],
    )


def _records(path: Path) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(line.decode(errors="replace") for line in _lines(path))
    try:
        missing = [name for name in ARRIVAL if name not in (reader.fieldnames or ARRIVAL)]
        if missing:
            raise UserError(
                f"{path}:1: not a trace: no column {', '.join(missing)}", f"columns: {', '.join(ARRIVAL)}"
            )
        yield from reader
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}", "save it as plain CSV") from error


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    with _opened(path) as file:
        try:
            for line in file:
                number += 1
                yield line
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path}:{number + 1}: cannot be read further: {error}",
                "the file is damaged or cut short: fetch it again",
            ) from error


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "check the path") from error
