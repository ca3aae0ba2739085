"""Shell: the edge, uvicorn's HTTP protocol with what it lacks: framing rules, limits, timers, a way out.

    uvicorn.Config(app, http=guard(EdgeLimits(), relay), loop="uvloop", ws="none", access_log=False)

The OpenAI routes go to the relay, without a task (`router.stepper`); everything else to the app, as ever.
A request with doubtful framing never reaches the app: one answer in OpenAI's shape, then the connection is
closed. While a request is being answered its connection is still read (so that a client that leaves is
noticed), but what it sends is kept back, unparsed, until the answer is out.
"""

import asyncio
import contextlib
from functools import partial
from typing import Any, Protocol, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from router.client import ClientExchange
from router.errors import BadRequest, BodyTooLarge, ClientTimeout, GatewayError, HeadTooLarge
from router.head import NO_HEAD, Outline, RequestHead, check_request_head, check_target, outline, status_line
from router.limits import EdgeLimits
from router.stepper import Step, Stepper
from router.target import Target, target_of
from router.warden import Reading, Warden

LINGER = 1.0  # seconds in which a refused client may still read why
AHEAD = 64 * 1024  # bytes kept back from a client that does not wait for its answer


class Answerer(Protocol):
    """Who answers the OpenAI routes: the relay."""

    def serve(self, client: ClientExchange) -> Step:
        """Answer this one request, or leave it without an answer if the client left."""
        ...


def guard(limits: EdgeLimits, relay: Answerer) -> type[asyncio.Protocol]:
    """What uvicorn.Config takes as `http=`; one for each server."""
    made = partial(Guard, limits=limits, warden=Warden(limits), relay=relay)
    return cast("type[asyncio.Protocol]", made)  # uvicorn only calls it; its annotation asks for a class


class Guard(HttpToolsProtocol):
    cycle: ClientExchange  # of the request that was parsed last

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: EdgeLimits,
        warden: Warden,
        relay: Answerer | None,
    ) -> None:
        """`relay` None: every route is the app's."""
        super().__init__(config, server_state, app_state, _loop)
        self.limits = limits
        self.warden = warden
        self.relay = relay
        self.active: ClientExchange | None = None  # the request being answered
        self.reading = Reading.IDLE
        self.since = 0.0  # when `reading` began
        self.received = 0  # bytes since then; parted: bytes that the client has not taken
        self.bare = 0  # bytes of a body's framing and trailers since a byte of the body came
        self.stuck_since = 0.0  # when the write buffer filled
        self.now = 0.0  # of the read that is being parsed
        self.length: bytes | None = None  # Content-Length of the head that is being parsed
        self.head = NO_HEAD  # of the request before
        self.target = Target(b"", b"", "", False)  # of that request
        self.outline: Outline | None = None  # of that request, if it came in one read
        self.ahead = bytearray()

    # transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self.since = self.loop.time()
        self.warden.watch(self.connections, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._lose_active()
        self.cycle = None  # type: ignore[assignment]  # uvicorn's own "none yet"; a ring for the collector else

    def data_received(self, data: bytes) -> None:
        if self.reading is Reading.LINGER:
            return
        active = self.active
        if self.ahead or (active is not None and (self.reading is Reading.DONE or self.cycle is not active)):
            self._keep_back(data)
            return
        self.now = self.loop.time()
        before = self.reading
        fresh = before is Reading.IDLE
        if fresh:
            if self.outline is not None and self._take_alike(data, self.outline):
                return
            self.reading = before = Reading.HEAD
            self.since = self.now
            self.received = 0
        cycle, received = self.cycle, self.received
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(BadRequest("Upgrade is not supported"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            known = isinstance(cause, GatewayError)
            self.refuse(cause if known else BadRequest(f"invalid HTTP request: {error}"))  # type: ignore[arg-type]
        else:
            if self.reading is before:
                self._more(len(data), self.received != received or self.cycle is not cycle)
            elif fresh and self.reading is Reading.DONE:
                self._remember(data)

    def _more(self, size: int, body: bool) -> None:
        """The parser keeps heads and trailers until they end. `body`: what came was, or began, a body."""
        if self.reading is Reading.HEAD:
            kept, what = self.received + size, "request head is"
            self.received = kept
        elif self.reading is Reading.BODY:
            kept, what = 0 if body else self.bare + size, "body's framing or trailers are"
            self.bare = kept
        else:
            return
        if kept > self.limits.header_bytes:
            self.refuse(HeadTooLarge(f"the {what} too large"))

    def _remember(self, data: bytes) -> None:
        """If `data` was one whole request, the next one with this head need not be read by the parser."""
        cycle, size = self.cycle, len(self.cycle.body)
        alone = cycle is self.active and not self.pipeline
        if alone and cycle.keep_alive and not self.head.expects and cycle.length == b"%d" % size:
            self.outline = outline(data, size)

    def _take_alike(self, data: bytes, last: Outline) -> bool:
        """Take a request that came whole, with the head of the last one but for its length.

        What was found out about that head is true of this one.
        """
        body = last.body_of(data)
        if not body or len(body) > AHEAD:
            return False
        cycle = ClientExchange(self, self.head, self.target, b"%d" % len(body), True, bytearray(body))
        cycle.more_body = False
        self.cycle = self.active = cycle
        self.since = self.now
        self.received = len(body)
        self.reading = Reading.DONE
        if self.relay is not None and self.target.relayed:
            self._stepper(cycle, self.relay).start()
        else:
            self._answer(cycle, self.app)
        return True

    def _keep_back(self, data: bytes) -> None:
        self.ahead += data
        if len(self.ahead) > AHEAD:
            self.flow.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stuck_since = self.loop.time()
        if self.active is not None and self.active.feeder is not None:
            self.active.feeder.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.active is not None and self.active.feeder is not None:
            self.active.feeder.resume()

    # parser's side

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.length = None
        self.reading = Reading.HEAD
        if len(self.pipeline) >= self.limits.pipelined:
            raise BadRequest("too many requests sent ahead of their answers")

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        name = name.lower()
        if name == b"content-length" and self.reading is Reading.HEAD:
            if self.length is not None:
                raise BadRequest("more than one content-length header")
            self.length = value
            return
        headers.append((name, value))
        if len(headers) > self.limits.header_fields:
            raise HeadTooLarge(f"more than {self.limits.header_fields} header fields")

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        headers = self.headers
        self.headers = []  # trailers end here: nobody asked for them, and they must not pass for headers
        head = self.head
        self.outline = None
        if head.headers != headers or head.method != method or head.version != version:
            fields = check_request_head(method, version, headers, self.limits.header_bytes)
            head = self.head = RequestHead(method, version, headers, fields)
        if len(self.url) > self.limits.header_bytes:
            raise HeadTooLarge("the request target is too long")
        if self.url[:1] != b"/":
            check_target(self.url, head.fields.get(b"host"))
        if parser.should_upgrade():
            raise BadRequest("Upgrade is not supported")
        if self.length is not None and b"transfer-encoding" in head.fields:
            raise BadRequest("the length of the body is ambiguous")
        self.target = target_of(self.url)
        self._begin(head, self.target, version == "1.1" and parser.should_keep_alive())

    def _begin(self, head: RequestHead, target: Target, keep_alive: bool) -> None:
        """A request whose head is sound: it is answered now, or after the one that is."""
        self.cycle = cycle = ClientExchange(self, head, target, self.length, keep_alive, bytearray())
        self.reading = Reading.BODY
        self.since = self.now
        self.received = self.bare = 0
        if self.active is None:
            self._answer(cycle, self.app)
        else:
            self.pipeline.appendleft((cycle, self.app))

    def scope_of(self, exchange: ClientExchange) -> Any:
        """What an ASGI app is told of a request."""
        head, target, headers = exchange.head, exchange.target, exchange.head.headers
        if exchange.length is not None:
            headers = [*headers, (b"content-length", exchange.length)]
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": headers,
            "state": self.app_state.copy(),
            "method": head.method,
            "raw_path": target.raw_path,
            "path": target.path,
            "query_string": target.query,
        }

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if not cycle.target.relayed and self.received > self.limits.app_body:
            raise BodyTooLarge(f"the body may be at most {self.limits.app_body} bytes here")
        if cycle.claimed is None:
            if len(cycle.body) > AHEAD:
                self.flow.pause_reading()
            cycle.wake()
        elif len(cycle.body) > cycle.claimed:
            self.flow.pause_reading()
            cycle.wake()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        cycle.more_body = False
        if cycle.response_complete:
            self._enter(Reading.IDLE)
        else:
            self.reading = Reading.DONE
            cycle.wake()

    # the answer's side

    def _answer(self, cycle: ClientExchange, app: ASGI3Application) -> None:
        """In the next round of the loop: now the parser is at work, or another request's last step."""
        self.active = cycle
        if self.relay is not None and cycle.target.relayed:
            self.loop.call_soon(self._stepper(cycle, self.relay).start)
            return
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _stepper(self, cycle: ClientExchange, relay: Answerer) -> Stepper:
        stepper = cycle.owner = Stepper(relay.serve(cycle), self.loop, cycle.over)
        self.tasks.add(stepper)  # type: ignore[arg-type]  # uvicorn counts what is there, and may cancel it
        return stepper

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self.active = None
        if self.transport.is_closing() or self.reading is Reading.LINGER:
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._answer(cast("ClientExchange", cycle), app)
        elif self.reading is Reading.DONE:
            self._enter(Reading.IDLE)
        if self.ahead:  # perhaps the rest of the body of the one that is answered now
            self.loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Read what came while the last request was answered."""
        data, self.ahead = bytes(self.ahead), bytearray()
        if data and self.parser is not None:
            self.data_received(data)

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error if no status is committed, and close. The app hears that the client left."""
        self.pipeline.clear()
        active = self.active
        if active is not None and not (self.reading is Reading.BODY and self.cycle is active):
            # the request at fault came after the one that is being answered: that answer may end
            active.keep_alive = False
            self.reading = Reading.LINGER
            return
        if active is not None and active.response_started:
            self.transport.abort()
            return
        self._lose_active()
        body = error.body()
        fields = [b"%b: %b\r\n" % pair for pair in (*self.server_state.default_headers, *error.headers())]
        self.transport.write(
            b"%b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status_line(error.status), b"".join(fields), len(body), body)
        )
        self.linger()

    def linger(self) -> None:
        """Close, but let a client that still sends read the answer first."""
        if self.reading in (Reading.IDLE, Reading.DONE):
            self._part()
            return
        self._enter(Reading.LINGER)
        self.ahead.clear()
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # it has just left: nobody is told, and no sweep ends here
                self.transport.write_eof()
        self.flow.resume_reading()

    def _part(self) -> None:
        """Close, once the client has taken what was written."""
        self._enter(Reading.PARTED)
        self.transport.close()

    def _lose_active(self) -> None:
        active, self.active = self.active, None
        if active is not None:
            active.lose()

    # timers

    def _enter(self, reading: Reading) -> None:
        self.reading = reading
        self.since = self.loop.time()
        self.received = 0

    def overdue(self, now: float) -> str | None:
        """What the client let lapse, if anything."""
        limits = self.limits
        if self.reading is Reading.LINGER:
            return "linger" if self.active is None and now - self.since > LINGER else None
        if self.reading is Reading.PARTED:
            unsent = self.transport.get_write_buffer_size()
            if unsent != self.received:
                self.received, self.since = unsent, now
            return "reader" if now - self.since > limits.reader else None
        if self.flow.write_paused and now - self.stuck_since > limits.reader:
            return "reader"
        if self.active is not None and not (self.reading is Reading.BODY and self.cycle is self.active):
            return None
        age = now - self.since
        if self.reading is Reading.IDLE:
            return "idle" if age > limits.idle else None
        if self.reading is Reading.HEAD:
            return "head" if age > limits.head else None
        if self.reading is Reading.BODY and not self.flow.read_paused:
            return "body" if age > limits.body + self.received / limits.body_rate else None
        return None

    def expire(self, what: str) -> None:
        """Part with a client that was too slow."""
        if what in ("head", "body"):
            self.refuse(ClientTimeout(f"the request {what} did not arrive in time"))
        elif what == "idle":
            self._part()
        else:
            self.transport.abort()
