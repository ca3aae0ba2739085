"""Shell: logs of a process: a constant message with fields, as JSON or text.

A line about one request carries `request_id` among its fields (`extra={"request_id": ...}`). A field whose
name says that it is a secret is starred out, whoever logs it. A thread of its own writes: nobody who logs
waits for a pipe that is not emptied.
"""

import contextlib
import copy
import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from joulegate.settings.locate import is_secret, masked

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
HIDDEN = "********"


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`, secrets starred out, and the traceback if there is one."""
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    fields: dict[str, object] = {key: _safe(key, value) for key, value in given.items()}
    if record.exc_text:
        fields["traceback"] = record.exc_text
    return fields


def _safe(key: str, value: object) -> object:
    if is_secret((key,)) or key == "authorization":
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(inner): _safe(str(inner), found) for inner, found in value.items()}
    return masked(value) if isinstance(value, str) else value


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            **fields_of(record),
        }
        try:
            return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # the half of a surrogate pair, or a number of any size
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`time level message  key=value ...`, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        traceback = fields.pop("traceback", None)
        words = "".join(f"  {key}={value}" for key, value in fields.items())
        line = f"{_time(record)} {record.levelname.lower():<7} {masked(record.getMessage())}{words}"
        return f"{line}\n{traceback}" if traceback else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Handover(logging.handlers.QueueHandler):
    """Renders what belongs to the logging thread (arguments, exception) and leaves the fields alone."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = copy.copy(record)
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        return record


@contextlib.contextmanager
def logging_to(style: Literal["json", "text"], level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Everything logged inside goes to `stream` (stderr); what still waits is written at the end."""
    sink = logging.StreamHandler(stream or sys.stderr)
    sink.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = _Handover(waiting)
    listener = logging.handlers.QueueListener(waiting, sink)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()
