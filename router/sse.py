"""Pure: server-sent events in a stream of bytes that may be cut anywhere.

Events end at an empty line; line ends are LF, CRLF or CR. Bytes are never rebuilt: an event is the bytes
between two ends, its own end included.
"""

import re
from collections.abc import Iterator

ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
END = re.compile(rb"\n\n|\n\r\n|\r\r")
LINE_END = re.compile(rb"\r\n|\n|\r")
HOLD_LIMIT = 64 * 1024  # bytes of one unfinished event


class Cutter:
    """Cuts a stream where events end, so that only whole events are passed on.

    An event longer than HOLD_LIMIT is passed on in pieces: `inside` says that the last byte out was not an
    end.
    """

    __slots__ = ("held", "inside")

    def __init__(self) -> None:
        self.held = b""  # of an event that has not ended
        self.inside = False

    def feed(self, data: bytes) -> bytes:
        """What may be passed on now."""
        held = self.held
        if not held and data.endswith(ENDS):
            self.inside = False
            return data
        end = last_end(data, 0) if not held else last_end(data := held + data, max(0, len(held) - 2))
        if end < 0:
            if len(data) <= HOLD_LIMIT:
                self.held = data
                return b""
            self.held = b""
            self.inside = True
            return data
        self.held = data[end:]
        self.inside = False
        return data[:end]

    def rest(self) -> bytes:
        """What is left of an event that never ended."""
        held, self.held = self.held, b""
        return held


def last_end(data: bytes, start: int) -> int:
    """Where the last event that ends in `data` ends, looking from `start`; -1: none does."""
    best = -1
    for end in ENDS:
        found = data.rfind(end, start)
        if found >= 0:
            best = max(best, found + len(end))
    return best


def events(data: bytes) -> Iterator[bytes]:
    """The events in `data`; the last one may lack its end.

    Line ends too many stand apart: they belong to no event, wherever the stream was cut among them.
    """
    start = 0
    while start < len(data):
        end = END.search(data, start)
        piece = data[start : end.end()] if end else data[start:]
        event = piece.lstrip(b"\r\n")
        if len(event) < len(piece):
            yield piece[: len(piece) - len(event)]
        if event:
            yield event
        start += len(piece)


def payload(event: bytes) -> bytes:
    """The `data` of an event; b"" for comments and for events without data."""
    lines = []
    for line in LINE_END.split(event):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines)
