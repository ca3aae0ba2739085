"""Shell: rows to learn from and to be judged on: prompts (JSONL, gzip or not) and arrival traces (CSV).

Prompts: an object a line with `output_tokens` and `model`; `prompt`, `input_tokens`, `source`, `prompt_id`,
`licence` and any other column (a tenant, a group) where present. Traces: timestamp_s, input_tokens and
output_tokens;
`parent_row` (row that a turn continues, from 0) where present.
"""

import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
            try:
                rows.append(_row(orjson.loads(line), path, tenant_key))
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}:{number}: not a row of prompts: {error}",
                    "each line is an object with prompt, output_tokens and model",
                ) from error
    if not rows:
        raise UserError(f"no rows in {', '.join(map(str, paths))}")
    return rows


def _row(line: dict[str, object], path: Path, tenant_key: str | None) -> Row:
    prompt = str(line.get("prompt", ""))
    source = str(line.get("source", path.name.partition(".")[0]))
    stream = StreamName(source, str(line["model"]))
    if tenant_key is not None and tenant_key not in line:
        raise UserError(f"{path}: no column {tenant_key!r}", f"columns: {', '.join(sorted(line))}")
    tokens = line.get("input_tokens")
    head, tail = ends(prompt)
    query = LengthQuery(
        model=alias(stream),
        key=str(line[tenant_key]) if tenant_key is not None else "",
        input_tokens=_whole(tokens) if tokens is not None else int(len(prompt) / CHARACTERS_PER_TOKEN),
        text_head=head,
        text_tail=tail,
    )
    return Row(
        Sample(query, _whole(line["output_tokens"])),
        stream,
        str(line.get("prompt_id", crc32(prompt.encode()))),
        str(line.get("licence", "")),
    )


def alias(stream: StreamName) -> str:
    """The model name that a stream learns under: one endpoint answering one kind of traffic."""
    return f"{stream.source}/{stream.model}"


def _whole(value: object) -> int:
    if not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is not a number")
    return int(value)


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
                arrivals.append(
                    (
                        float(line["timestamp_s"]),
                        offset + place,
                        _arrival(line, path, offset, place, tenant_key),
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}:{place + 2}: not a row of a trace: {error}",
                    "columns: timestamp_s, input_tokens, output_tokens",
                ) from error
    if not arrivals:
        raise UserError(f"no rows in {', '.join(map(str, paths))}")
    arrivals.sort(key=lambda arrival: arrival[:2])
    name = StreamName("+".join(path.name.partition(".")[0] for path in paths), "trace")
    return {name: [sample for _, _, sample in arrivals]}


def _arrival(line: dict[str, str], path: Path, offset: int, place: int, tenant_key: str | None) -> Sample:
    key = ""
    if tenant_key == "trace":
        key = path.name.partition(".")[0]
    elif tenant_key is not None:
        if tenant_key not in line:
            raise UserError(f"{path}: no column {tenant_key!r}", f"columns: trace, {', '.join(sorted(line))}")
        key = line[tenant_key]
    parent = line.get("parent_row") or "-1"
    row = int(float(parent))
    query = LengthQuery(
        model="trace",
        key=key,
        input_tokens=int(float(line["input_tokens"])),
        parent=offset + row + 1 if row >= 0 else 0,
        turn=offset + place + 1,
    )
    return Sample(query, int(float(line["output_tokens"])), float(line["timestamp_s"]))


def read_arrivals(path: Path) -> tuple[list[float], list[int], list[int]]:
    """(seconds, input tokens, output tokens) of a trace, by time."""
    (samples,) = read_traces([path], None).values()
    return (
        [sample.at for sample in samples],
        [sample.query.input_tokens for sample in samples],
        [sample.output_tokens for sample in samples],
    )


def _records(path: Path) -> Iterator[dict[str, str]]:
    with _opened(path) as file:
        yield from csv.DictReader(line.decode() for line in file)


def _lines(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        yield from file


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "check the path") from error
