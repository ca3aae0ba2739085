"""Shell: one request of a client, and the direct way of an answer's bytes to its socket.

uvicorn's cycle (scope, receive, send) stays what every other route uses. The relay takes the direct way
instead: no ASGI message for a chunk, the head and the first bytes of the body in one write, backpressure by
callback, and a client that leaves cancels whoever answers it, wherever that waits. The two ways are never
mixed in one answer.
"""

import asyncio
import logging
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from router.errors import BodyTooLarge, GatewayError
from router.head import RequestHead, status_line
from router.stepper import Stepper
from router.target import Target

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Pausable(Protocol):
    """Whoever feeds this client: told to stop while the client does not take what it has."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Edge(Protocol):
    """What a request needs of its connection (the guard)."""

    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    access_logger: logging.Logger
    access_log: bool
    server_state: ServerState
    tasks: "set[asyncio.Task[None]]"

    def scope_of(self, exchange: "ClientExchange") -> Any: ...

    def on_response_complete(self) -> None: ...

    def linger(self) -> None: ...


class ClientExchange(RequestResponseCycle):
    """Made by the guard for every request. Writes after the client left are dropped."""

    # what most requests never change
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    owner: Stepper | None = None  # of the relay: cancelled when the client leaves
    feeder: Pausable | None = None
    claimed: int | None = None  # the relay reads the body: up to so many bytes
    _scope: Any = None
    _unsent: bytes = b""  # the head, until there is a body to send with it
    _until_close: bool = False
    _bodiless: bool = False
    _event: asyncio.Event | None = None

    def __init__(
        self,
        edge: Edge,
        head: RequestHead,
        target: Target,
        length: bytes | None,
        keep_alive: bool,
        body: bytearray,
    ) -> None:
        # what uvicorn's own constructor sets; the rest of it when it is asked for
        self.edge = edge
        self.transport = edge.transport
        self.on_response = edge.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = head.expects
        self.body = body
        self.head = head
        self.target = target
        self.length = length

    @property
    def scope(self) -> Any:  # type: ignore[override]
        if self._scope is None:
            self._scope = self.edge.scope_of(self)
        return self._scope

    @property
    def flow(self) -> FlowControl:  # type: ignore[override]
        return self.edge.flow

    @property
    def logger(self) -> logging.Logger:  # type: ignore[override]
        return self.edge.logger

    @property
    def access_logger(self) -> logging.Logger:  # type: ignore[override]
        return self.edge.access_logger

    @property
    def access_log(self) -> bool:  # type: ignore[override]
        return self.edge.access_log

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        return self.edge.server_state.default_headers

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """Set when there is body, or an end. Made when somebody waits for it: the relay seldom does."""
        event = self._event
        if event is None:
            event = self._event = asyncio.Event()
            if self.body or not self.more_body or self.disconnected:
                event.set()
        return event

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()

    @property
    def gone(self) -> bool:
        return self.disconnected or self.transport.is_closing()

    @property
    def started(self) -> bool:
        """The status is committed."""
        return self.response_started

    def over(self, stepper: Stepper, error: BaseException | None) -> None:
        """The relay is done with this request."""
        self.edge.tasks.discard(stepper)
        self.owner = self.feeder = None
        if isinstance(error, Exception):
            self.logger.error("Exception in the relay", exc_info=error)
            if not self.response_started:
                self.answer(GatewayError("the gateway failed"), [])
        if not (self.response_complete or self.disconnected):
            self.abort()
        self.on_response = _nobody  # else it holds its connection, which holds it

    def lose(self) -> None:
        """The client left, or was refused while it still sent."""
        self.disconnected = True
        self.wake()
        if self.owner is not None:
            self.owner.cancel()

    async def read_body(self, limit: int) -> bytearray:
        """The whole body, not copied. Raises BodyTooLarge as soon as it is known to be longer."""
        self.claimed = limit
        if self.more_body:
            await self._arrive(limit)
        body = self.body
        if len(body) > limit:
            raise BodyTooLarge(f"the body may be at most {limit} bytes")
        self.body = bytearray()
        return body

    async def _arrive(self, limit: int) -> None:
        """Wait for the end of the body, or for more than `limit` of it."""
        if self.length is not None and int(self.length) > limit:
            raise BodyTooLarge(f"the body may be at most {limit} bytes")
        if self.waiting_for_100_continue and not self.gone:
            self.transport.write(CONTINUE)
            self.waiting_for_100_continue = False
        self.flow.resume_reading()
        while self.more_body and len(self.body) <= limit:
            await self.message_event.wait()
            self.message_event.clear()

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """Commit to a status. `head`: status line and header lines, each ended, without framing fields.

        `length` None: the length is not known. Nothing is written before the first `write`, `flush` or
        `finish`.
        """
        self.response_started = True
        self.waiting_for_100_continue = False
        self._bodiless = self.head.method == "HEAD" or status in (204, 304)
        framing = b""
        if length is not None:
            self.expected_content_length = length
            if status != 204:
                framing = b"content-length: %d\r\n" % length
        elif self._bodiless:
            pass
        elif self.head.version == "1.1":
            self.chunked_encoding = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self._until_close = True
            self.keep_alive = False
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        self._unsent = b"%b%b\r\n" % (head, framing)

    def write(self, body: bytes) -> None:
        """Send a piece of the body."""
        if self.disconnected:
            return
        if self._bodiless:
            self.flush()
            return
        if self.chunked_encoding:
            body = b"%b%x\r\n%b\r\n" % (self._unsent, len(body), body)
        elif self._until_close:
            body = self._unsent + body
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                self.abort()
                return
            body = self._unsent + body
        self._unsent = b""
        if not self.transport.is_closing():
            self.transport.write(body)

    def flush(self) -> None:
        """Send the head if it still waits for a body."""
        if self._unsent and not self.gone:
            self.transport.write(self._unsent)
        self._unsent = b""

    def finish(self) -> None:
        """The answer is whole: the connection may serve the next request."""
        if self.gone:
            return
        if self.chunked_encoding:
            self.transport.write(self._unsent + b"0\r\n\r\n")
            self._unsent = b""
        else:
            self.flush()
            if self.expected_content_length and not self._bodiless:
                self.abort()
                return
        self.response_complete = True
        if not self.keep_alive:
            self.edge.linger()
        self.on_response()

    def abort(self) -> None:
        """The answer cannot be ended well: the client must see that it was cut."""
        self.transport.abort()

    def answer(self, error: GatewayError, headers: list[tuple[bytes, bytes]]) -> None:
        """A whole answer from an error. Closes the connection if the request has not arrived in full."""
        if self.more_body:
            self.keep_alive = False
        body = error.body()
        head = b"".join(
            [
                status_line(error.answer_status),
                b"\r\ncontent-type: application/json\r\n",
                *(b"%b: %b\r\n" % pair for pair in (*error.headers(), *headers)),
            ]
        )
        self.begin(error.answer_status, head, len(body))
        self.write(body)
        self.finish()


def _nobody() -> None:
    """Whom an answer tells that it is over, when it was over before."""
