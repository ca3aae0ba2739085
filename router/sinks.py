"""Shell: where the body of an answer goes, read by read: to the client, and past the eyes that learn from
it."""

import time

from joulegate.units import Seconds
from router.client import ClientExchange
from router.dialects import NO_USAGE, Tap, Usage, usage_of
from router.errors import GatewayError
from router.ports import Sink, Slot
from router.responses import HEAD_BYTES, response_id


class PlainSink:
    """Passes bytes on; keeps a copy of a short body, for its usage. Implements router.ports.Sink."""

    __slots__ = ("_copy", "_keep", "client", "last_output")
    count = 0
    first_output: Seconds | None = None
    failed = ""

    def __init__(self, client: ClientExchange, keep: int) -> None:
        self.client = client
        self.last_output: Seconds | None = None
        self._keep = keep  # bytes
        self._copy: list[bytes] = []

    def feed(self, body: bytes) -> None:
        self.client.write(body)
        if self._keep > 0:
            self._keep -= len(body)
            self._copy.append(body)

    def end(self) -> None:
        self.last_output = Seconds(time.monotonic())
        self.client.finish()

    def broken(self, error: GatewayError) -> None:
        self.client.abort()

    def usage(self) -> Usage:
        return usage_of(b"".join(self._copy)) if self._keep > 0 and self._copy else NO_USAGE


class EventSink:
    """Passes events on; tells the slot how many carried output. Implements router.ports.Sink."""

    __slots__ = ("client", "first_output", "last_output", "slot", "tap")

    def __init__(self, client: ClientExchange, slot: Slot, tap: Tap) -> None:
        self.client = client
        self.slot = slot
        self.tap = tap
        self.first_output: Seconds | None = None
        self.last_output: Seconds | None = None

    @property
    def count(self) -> int:
        return self.tap.count

    @property
    def failed(self) -> str:
        return self.tap.failed

    def feed(self, body: bytes) -> None:
        tap = self.tap
        before = tap.count
        out = tap.feed(body)
        if out:
            self.client.write(out)
        fresh = tap.count - before
        if fresh:
            self.last_output = now = Seconds(time.monotonic())
            if self.first_output is None:
                self.first_output = now
            self.slot.progress(fresh, now)

    def end(self) -> None:
        rest = self.tap.end()
        if rest:
            self.client.write(rest)
        self.client.finish()

    def broken(self, error: GatewayError) -> None:
        self.client.write(self.tap.broken(error))
        self.client.finish()

    def usage(self) -> Usage:
        return self.tap.usage()


class NamingSink:
    """Tells the slot the id of the response that passes on to `sink`. Implements router.ports.Sink."""

    __slots__ = ("_head", "_sink", "_slot")

    def __init__(self, slot: Slot, sink: Sink) -> None:
        self._slot = slot
        self._sink = sink
        self._head: bytes | None = b""  # None: nothing more is looked for

    def feed(self, body: bytes) -> None:
        if self._head is not None:
            self._head += body[:HEAD_BYTES]
            if found := response_id(self._head):
                self._slot.made(found)
            if found or len(self._head) >= HEAD_BYTES:
                self._head = None
        self._sink.feed(body)
