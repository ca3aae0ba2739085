"""Shell: logs as one JSON object a line on stderr, written by a thread of their own.

The dead-man thread logs too, and must not wait for a pipe that nobody empties.
"""

import contextlib
import json
import logging
import logging.handlers
import queue
from collections.abc import Iterator
from datetime import UTC, datetime

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Constant message, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, default=str)


@contextlib.contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """Everything that is logged inside goes out as JSON; what still waits is written at the end."""
    stream = logging.StreamHandler()
    stream.setFormatter(JsonFormatter())
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(waiting)
    listener = logging.handlers.QueueListener(waiting, stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()
