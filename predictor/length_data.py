"""Shell: rows to learn from and to be judged on: prompts (JSONL, gzip or not) and arrival traces (CSV).

Prompts: an object a line with `output_tokens`, `model`, and `prompt`, `messages` (OpenAI's) or
`input_tokens`; `source`, `prompt_id`, `licence` and any other column (a tenant, a group) where present.
Traces: `joulegate.arrivals`; `parent_row` (row that a turn continues, from 0) where present.
"""

import gzip
import io
import zlib
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO
from zlib import crc32

import orjson

from joulegate.arrivals import Trace, read_rows
from joulegate.domain import LengthQuery
from joulegate.errors import UserError
from joulegate.messages import content_text
from predictor.features import ends
from predictor.length_evaluate import Sample, StreamName

CHARACTERS_PER_TOKEN = 4.0  # where a row does not say how long its prompt is in tokens
HELD_OUT = 5  # prompts whose crc32 is divisible by this are never learned from
MOST_TOKENS = 1 << 31


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
                rows.append(_row(orjson.loads(line.removeprefix(BOM_UTF8)), path, tenant_key))
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: not a row of prompts: {error}",
                    "each line is an object with prompt (or messages), output_tokens and model",
                ) from error
    if not rows:
        raise UserError(f"no rows in {', '.join(map(str, paths))}")
    return rows


def _row(line: object, path: Path, tenant_key: str | None) -> Row:
    if not isinstance(line, dict):
        raise ValueError("not an object")
    prompt, characters = _prompt(line)
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
        input_tokens=_tokens(line, "input_tokens") if told else int(characters / CHARACTERS_PER_TOKEN),
        text_head=head,
        text_tail=tail,
    )
    return Row(
        Sample(query, _tokens(line, "output_tokens")),
        stream,
        str(line.get("prompt_id", crc32(prompt.encode()))),
        str(line.get("licence", "")),
    )


def _prompt(line: Mapping[str, object]) -> tuple[str, int]:
    """(text that the answer follows from, characters of all of it). Raises ValueError naming the key.

    Of messages the last one of the user is read, as the gateway does; all of them are long.
    """
    prompt, messages = line.get("prompt"), line.get("messages")
    if prompt is None and messages is not None:
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"messages: {_short(messages)} is no list of messages")
        said = [(message.get("role"), content_text(message.get("content"))) for message in messages]
        last = [text for role, text in said if role == "user"][-1:]
        return "".join(last), sum(len(text) for _, text in said)
    if prompt is None and line.get("input_tokens") is None:
        raise ValueError(f"no prompt, messages or input_tokens, only {_short(', '.join(sorted(line)))}")
    if not isinstance(prompt, str | None):
        raise ValueError(f"prompt: {_short(prompt)} is not text")
    return prompt or "", len(prompt or "")


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
    samples: list[Sample] = []
    offset = 0
    for path in paths:
        trace = read_rows(path)
        samples += _samples(trace, path, offset, tenant_key)
        offset += trace.count
    samples.sort(key=lambda sample: (sample.at, sample.query.turn))
    name = StreamName("+".join(path.name.partition(".")[0] for path in paths), "trace")
    return {name: samples}


def _samples(trace: Trace, path: Path, offset: int, tenant_key: str | None) -> Iterator[Sample]:
    """`offset`: rows of the files before. Raises UserError where a column is not there or is no number."""
    if tenant_key not in (None, "trace", *trace.names):
        shown = ", ".join(["trace", *sorted(trace.names)])
        raise UserError(f"{path}: no column {tenant_key!r}", f"columns: {shown}")
    for row in trace.rows:
        line = dict(zip(trace.names, row.cells, strict=True))
        key = path.name.partition(".")[0] if tenant_key == "trace" else line.get(tenant_key or "", "")
        try:
            parent = int(_number(line, "parent_row")) if line.get("parent_row") else -1
        except ValueError as error:
            raise UserError(
                f"{path}: row {row.place} below the header: {error}", "the row that a turn continues, from 0"
            ) from error
        query = LengthQuery(
            model="trace",
            key=key,
            input_tokens=row.input_tokens,
            parent=offset + parent + 1 if parent >= 0 else 0,
            turn=offset + row.place + 1,
        )
        yield Sample(query, row.output_tokens, row.at)


def read_arrivals(path: Path) -> tuple[list[float], list[int], list[int]]:
    """(seconds, input tokens, output tokens) of a trace, by time."""
    rows = read_rows(path).rows
    return (
        [row.at for row in rows],
        [row.input_tokens for row in rows],
        [row.output_tokens for row in rows],
    )


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
