"""Shell: one HTTP/1.1 connection to an instance, which is trusted as little as any client.

llhttp parses; on top of it this refuses what could be read in two ways (two lengths, a length beside
chunks, an encoding other than chunked), a switch of protocol nobody asked for, floods of 1xx heads or of
header fields. What comes after the exact end of an answer is never taken for the next one: the connection
is spoilt.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import httptools

from router.errors import UpstreamDown, UpstreamError, UpstreamGarbled
from router.head import NOT_RELAYED, OURS, Header, Outline, nominations, outline, reply_head, whole_chunk
from router.limits import UpstreamLimits
from router.ports import Sink
from router.stepper import Signal

NEVER = float("inf")
JOIN_BELOW = 64 * 1024  # bytes: below, one copy is cheaper than a second buffer in the socket call


class Connection(asyncio.Protocol):
    """Also the Reply of the answer that is being read (`router.ports.Reply`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: UpstreamLimits) -> None:
        self.loop = loop
        self.limits = limits
        self.idle_since = 0.0
        self.deadline = NEVER  # monotonic seconds: when the instance has been silent for too long
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._signal: Signal | None = None  # whoever waits for this answer
        self._error: UpstreamError | None = None
        self._reused = False
        self._lost = False
        self._clean = True  # nothing came that was not part of an answer
        self._paused = False
        self.sent_at = 0.0
        self._lost_at = NEVER
        self._awaits_body = False
        self._pieces: list[bytes] = []  # of this read
        self._held: list[bytes] = []
        self.head = reply_head(())  # of the last answer, and what it was made of
        self._chunked = False
        self._same_fields: list[Header] = []
        self._same_status = 0
        self._length_field = b""
        self._outline: Outline | None = None  # of the last answer, if it came in one read
        self._reset(head_only=False)
        self._complete = True

    def _reset(self, head_only: bool) -> None:
        self.status = 0
        self.length: int | None = None
        self._fields: list[Header] = []
        self._fed = self._informational = 0
        self._bare = 0  # bytes of framing and trailers since a byte of the body came
        self._lengths = 0
        self._head_only = head_only
        self._head_done = False
        self._complete = False
        self._answered = False  # at least one byte came
        self._sink: Sink | None = None
        self._chunk_ended = False
        self._between_chunks = False  # the parser waits for the size of a chunk
        self._held_size = 0  # of what was read before somebody took the body
        self._want = NEVER

    # the pool's side

    @property
    def usable(self) -> bool:
        """Between two answers, and fit for another request."""
        transport = self._transport
        untaken = self._held  # somebody left before he took what there was: it must not reach the next one
        return self._complete and self._clean and not untaken and not self._lost and transport is not None

    @property
    def raced(self) -> bool:
        """The engine had closed this kept connection when we wrote to it."""
        soon = self._lost_at - self.sent_at < self.limits.race
        return self._reused and not self._answered and self._lost and soon

    def send(self, message: Sequence[bytes | bytearray | memoryview], head_only: bool) -> None:
        """Write a request. Raises UpstreamDown if the instance has closed the connection."""
        self._reused = self.sent_at > 0.0
        self._reset(head_only)
        self.sent_at = now = time.monotonic()
        self.deadline = now + self.limits.head
        transport = self._transport
        if transport is None or self._lost or transport.is_closing():
            self._lost, self._lost_at = True, now
            raise UpstreamDown("the instance closed the connection")
        if len(message[-1]) < JOIN_BELOW:
            transport.write(b"".join(message))
        else:
            transport.writelines(message)

    async def answered(self, with_body: bool) -> None:
        """Wait for the head of the answer; `with_body`: and for the first byte of its body, or its end."""
        self._awaits_body = with_body
        if not self._head_done or (with_body and not self._held_size and not self._complete):
            await self._wait()

    def fail(self, error: UpstreamError) -> None:
        if self._error is None and not self._complete:
            self._error = error
        self.close()
        self._wake()

    def recall(self, error: UpstreamError) -> None:
        """Give the request up, if it waits for the first byte of a body."""
        if self._awaits_body and self._signal is not None and not self._held_size and self._sink is None:
            self.fail(error)

    def close(self) -> None:
        """At once: an engine that sees its client gone aborts the request."""
        self._clean = False
        self.deadline = NEVER
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is None:
            self._signal = signal = Signal(self.loop)
            try:
                await signal
            finally:
                self._signal = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        """Whoever waits goes on, perhaps at once, and may be done with this answer: the last thing to do."""
        if self._signal is not None:
            self._signal.fire()

    # the relay's side

    @property
    def begun(self) -> bool:
        """At least one byte of the body has come."""
        return self._held_size > 0

    async def read(self, limit: int) -> bytes | None:
        self._want = limit
        while not self._complete and self._held_size <= limit:
            await self._wait()
        if self._error is not None:
            raise self._error
        if self._held_size > limit:
            return None
        body = b"".join(self._held)
        self._held.clear()
        return body

    async def pump(self, sink: Sink) -> None:
        self._sink = sink
        if self._held:
            held = b"".join(self._held)
            self._held.clear()
            sink.feed(held)
            if self._held_size > self.limits.buffer:
                self.resume()
        if not self._complete:
            await self._wait()

    def pause(self) -> None:
        if not self._paused and self._transport is not None and not self._lost:
            self._paused = True
            self.deadline = NEVER  # it is the client that is slow
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self.deadline = time.monotonic() + self.limits.silence
            self._transport.resume_reading()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._lost_at = time.monotonic()
        self._clean = False
        if not self._complete:
            until_close = self._head_done and self.length is None and not self._chunked
            if until_close and exc is None and self._error is None:
                self._complete = True
            elif self._error is None:
                what = "in the middle of its answer" if self._head_done else "without an answer"
                self._error = UpstreamDown(f"the instance closed the connection {what}")
        self._transport = None  # both hold us: rings for the collector
        del self._parser
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self.close()  # a byte nobody asked for
        elif self._between_chunks and self._sink is not None and (body := whole_chunk(data)):
            self.deadline = time.monotonic() + self.limits.silence
            self._sink.feed(body)  # the parser need not see it
        elif self._answered or not self._take_alike(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._answered = True
        head_was_done = self._head_done
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._garbled(error):
                return
        if not self._head_done:
            self._more_head(len(data))
            return
        self.deadline = time.monotonic() + self.limits.silence
        pieces = self._pieces
        self._bare = 0 if pieces else self._bare + len(data)
        # the parser keeps a trailer until it ends
        if self._bare > self.limits.header_bytes and head_was_done:
            self.fail(UpstreamGarbled("the framing of the instance's answer is too large"))
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._complete:
            self._ended(data, len(body), head_was_done)
        else:
            self._between_chunks = self._chunk_ended and data.endswith(b"\r\n")
        self._deliver(body, due=self._complete or not (head_was_done or self._awaits_body))

    def _deliver(self, body: bytes, due: bool) -> None:
        """`due`: who waits should know, whatever the body."""
        if body and self._sink is not None:
            self._sink.feed(body)
        elif body and self._hold(body):
            due = True
        if due:
            self._wake()

    def _more_head(self, size: int) -> None:
        self._fed += size
        if self._fed > self.limits.header_bytes:
            self.fail(UpstreamGarbled("the instance's answer has too large a head"))

    def _garbled(self, error: Exception) -> bool:
        """What came is no HTTP. False: it came after the end of the answer, which stands."""
        self._clean = False
        if self._complete:
            return False
        cause = error.__context__
        known = cause if isinstance(cause, UpstreamGarbled) else None
        self.fail(known or UpstreamGarbled(f"invalid HTTP from the instance: {error}"))
        return True

    def _ended(self, data: bytes, body: int, head_was_done: bool) -> None:
        """`data` was the last read of an answer, with the last `body` bytes of it."""
        self._clean = self._clean and self._ends_exactly(data, body, head_was_done)
        self.deadline = NEVER
        whole = not head_was_done and not self._fed and not self._informational
        sure = self._clean and whole and body and self.length is not None
        self._outline = outline(data, body) if sure else None

    def _take_alike(self, data: bytes) -> bool:
        """Take an answer that came whole, with the head of the last one but for its length.

        What was found out about that head is true of this one: the parser need not read it again.
        """
        last = self._outline
        body = last.body_of(data) if last is not None and not self._head_only else b""
        if not body:
            return False
        self._answered = self._head_done = self._complete = True
        self.status = self._same_status
        self.length = len(body)
        self.deadline = NEVER
        self._hold(body)
        self._wake()
        return True

    def _hold(self, body: bytes) -> bool:
        """Keep it until somebody takes the body. True: who waits should know."""
        first = not self._held_size
        self._held.append(body)
        self._held_size += len(body)
        if self._held_size > self.limits.buffer:
            self.pause()
        return first or self._held_size > self._want

    def _ends_exactly(self, data: bytes, body: int, head_was_done: bool) -> bool:
        """Whether `data`, the last read of an answer, held nothing after it.

        llhttp skips line ends between messages without a word, so they are looked for here. In doubt: no.
        """
        if self._chunked:
            return data.endswith(b"0\r\n\r\n")
        if head_was_done:
            return len(data) == body
        return data.find(b"\r\n\r\n") + 4 + body == len(data)

    # the parser's side

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamGarbled("the instance sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._lengths += 1
            self._length_field = value
            return
        fields = self._fields
        fields.append((name, value))
        if len(fields) > self.limits.header_fields:
            raise UpstreamGarbled("the instance's answer has too many header fields")

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        fields = self._fields
        self._fields = []  # what comes now are trailers, or the fields of another head
        lengths, self._lengths = self._lengths, 0
        if status == 101 or parser.should_upgrade():
            raise UpstreamGarbled("the instance switched protocols unasked")
        if status < 200:
            self._informational += 1
            if status < 100 or self._informational > self.limits.informational:
                raise UpstreamGarbled(f"the instance sent status {status} once too often")
            return
        version = parser.get_http_version()
        if fields != self._same_fields or version != "1.1":
            self._examine(fields, version)
        if lengths:
            if lengths > 1 or self._chunked or not self._length_field.isdigit():
                raise UpstreamGarbled("the length of the instance's answer is ambiguous")
            self.length = int(self._length_field)
        self.status = self._same_status = status
        self._head_done = True
        if self._head_only:
            # the parser now expects a body that will not come: this connection serves no other request
            self._complete = True
            self._clean = False

    def _examine(self, fields: list[Header], version: str) -> None:
        """What follows from the fields of a head; the next answer mostly has the same ones."""
        kept: list[Header] = []
        nominated: set[bytes] = set()
        encodings = size = 0
        for pair in fields:
            name, value = pair
            size += len(name) + len(value)
            if name not in NOT_RELAYED and not name.startswith(OURS):
                kept.append(pair)
            elif name == b"transfer-encoding":
                encodings += 1
                if value.lower() != b"chunked":
                    raise UpstreamGarbled("the instance's Transfer-Encoding is not 'chunked'")
            elif name == b"connection":
                nominated |= nominations(value)
        if version != "1.1" and (version != "1.0" or encodings):
            raise UpstreamGarbled("the instance does not speak HTTP/1.1")
        if encodings > 1:
            raise UpstreamGarbled("the length of the instance's answer is ambiguous")
        if size > self.limits.header_bytes:
            raise UpstreamGarbled("the instance's answer has too large a head")
        if nominated:
            kept = [pair for pair in kept if pair[0] not in nominated]
        self.head = reply_head(kept)
        self._chunked = encodings == 1
        self._same_fields = fields

    def on_body(self, body: bytes) -> None:
        if not self._head_only:
            self._pieces.append(body)

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
            if not self._parser.should_keep_alive():
                self._clean = False
