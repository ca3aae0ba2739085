"""Shell: kept connections to instances.

    pool = UpstreamPool(UpstreamLimits())
    async with pool.exchange(endpoint, message, head_only=False, with_body=True, ...) as reply: ...
    await pool.aclose()

A connection is kept only after an answer that was read to its exact end and that allows it; one that brings a
byte nobody asked for is dropped. Kept ones are used last-in first-out and expire before the engine's own 5 s.
The name of a host is resolved anew for every new connection, and TLS files that have changed are read again.

A kept connection may be closed by the engine just as we write (keep-alive race). The request is sent once
more, on a fresh connection to the same instance, when all of this holds: the connection had been used
before, it ended within `race` seconds of our write, not one byte of an answer came, and the caller says
that it may be repeated (generation, GET and HEAD: nothing but the answer is lost).
"""

import asyncio
import errno
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from joulegate.units import Seconds
from router.connection import Connection
from router.errors import GatewayBusy, UpstreamDown, UpstreamError, UpstreamSilent
from router.limits import UpstreamLimits
from router.ports import Endpoint, Recall

OUR_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
Stamp = tuple[int, ...]  # when files were written
logger = logging.getLogger("joulegate.upstream")
STEPS = 10  # in which a connection is waited for


class UpstreamPool:
    """Implements `router.ports.Upstream`. Made inside a running event loop or before it."""

    def __init__(self, limits: UpstreamLimits) -> None:
        self.limits = limits
        self._idle: dict[tuple[str, int, str | None], deque[Connection]] = {}  # by place
        self._busy: set[Connection] = set()
        self._contexts: dict[tuple[str, ...], tuple[Stamp, ssl.SSLContext]] = {}  # by their files
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def exchange(
        self,
        endpoint: Endpoint,
        message: Sequence[bytes | bytearray | memoryview],
        *,
        head_only: bool,
        with_body: bool,
        repeatable: bool,
        sent: Callable[[Seconds, Recall], None],
    ) -> "Exchange":
        return Exchange(self, endpoint, message, head_only, with_body, repeatable, sent)

    @property
    def open_connections(self) -> int:
        return len(self._busy) + sum(len(kept) for kept in self._idle.values())

    @property
    def busy_connections(self) -> int:
        return len(self._busy)

    async def aclose(self) -> None:
        """Close every connection; running exchanges fail with UpstreamDown."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in [*self._busy, *(c for kept in self._idle.values() for c in kept)]:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # lets the transports close

    def forget(self, endpoint: Endpoint) -> None:
        """Close what is kept to an instance (drained, moved or gone)."""
        for connection in self._idle.pop(endpoint.place, ()):
            connection.close()

    def take(self, endpoint: Endpoint) -> Connection | None:
        """A kept connection, fresh enough to be alive."""
        kept = self._idle.get(endpoint.place)
        oldest = time.monotonic() - self.limits.keep_alive
        while kept:
            connection = kept.pop()
            if connection.usable and connection.idle_since > oldest:
                self._busy.add(connection)
                return connection
            connection.close()
        return None

    async def connect(self, endpoint: Endpoint) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            context = self._context(endpoint)
            limits = endpoint.limits or self.limits
            opening = loop.create_connection(
                lambda: Connection(loop, limits),
                endpoint.host,
                endpoint.port,
                ssl=context,
                server_hostname=endpoint.host if context else None,
            )
            connection = await opened(loop.create_task(opening), limits.connect)
        except TimeoutError as error:
            raise UpstreamDown(f"{endpoint.name}: no connection in time", unsent=True) from error
        except OSError as error:
            if error.errno in OUR_FAULT:
                raise GatewayBusy("the gateway is out of connections", retry_after=1.0) from error
            raise UpstreamDown(f"{endpoint.name}: cannot connect ({error})", unsent=True) from error
        if self._closed:
            connection.close()
            raise UpstreamDown("the gateway is stopping", unsent=True)
        self._busy.add(connection)
        self._watch(loop)
        return connection

    def release(self, endpoint: Endpoint, connection: Connection) -> None:
        """Keep a connection whose answer has ended well, else close it."""
        self._busy.discard(connection)
        if not connection.usable or self._closed:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        kept = self._idle.get(endpoint.place)
        if kept is None:
            kept = self._idle[endpoint.place] = deque()
        kept.append(connection)

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext | None:
        if not endpoint.tls:
            return None
        files = endpoint.ca_file or "", *(endpoint.client_cert or ())
        known, stamp = self._contexts.get(files), tuple(map(written, files))
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            context = ssl.create_default_context(cafile=endpoint.ca_file)
            if endpoint.client_cert is not None:
                context.load_cert_chain(*endpoint.client_cert)
        except OSError as error:
            if known is None:
                raise
            logger.warning("TLS files cannot be read: as before", extra={"files": files, "why": str(error)})
            context = known[1]
        self._contexts[files] = stamp, context
        return context

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and not self._closed:
            limits = self.limits
            period = max(0.02, min(0.5, limits.head / 4, limits.silence / 4, limits.keep_alive / 4))
            self._timer = loop.call_later(period, self._sweep, loop, period, time.monotonic() + period)

    def _sweep(self, loop: asyncio.AbstractEventLoop, period: float, due: float) -> None:
        """Fail what has been silent for too long, close what has been idle for too long."""
        self._timer = None
        now = time.monotonic()
        if now - due < period:  # else the loop stood still: what instances sent meanwhile is not read yet
            for connection in list(self._busy):
                if connection.deadline < now:
                    connection.fail(UpstreamSilent("the instance did not answer in time"))
        oldest = now - self.limits.keep_alive
        for key, kept in list(self._idle.items()):
            while kept and (kept[0].idle_since <= oldest or not kept[0].usable):
                kept.popleft().close()
            if not kept:
                del self._idle[key]
        if self._busy or self._idle:
            self._watch(loop)


async def opened(opening: "asyncio.Task[tuple[object, Connection]]", limit: float) -> Connection:
    """The connection that is being opened. Raises TimeoutError after `limit` seconds in which the loop ran.

    While the loop stands still nobody could have seen that the connection is there: a step of the wait counts
    as itself, however late it ends.
    """
    try:
        for _ in range(STEPS):
            await asyncio.wait([opening], timeout=limit / STEPS)
            if opening.done():
                return opening.result()[1]
        raise TimeoutError
    except BaseException:
        opening.cancel()
        opening.add_done_callback(_unwanted)
        raise


def _unwanted(opening: "asyncio.Task[tuple[object, Connection]]") -> None:
    """It came about although nobody waits for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[1].close()


def written(file: str) -> int:
    """When it was, in ns; 0: it cannot be seen."""
    try:
        return os.stat(file).st_mtime_ns  # noqa: PTH116 - for every new connection
    except OSError:
        return 0


class Exchange:
    """One request and its answer: `async with` sends, and yields the connection as the Reply."""

    __slots__ = (
        "connection",
        "endpoint",
        "head_only",
        "message",
        "pool",
        "repeatable",
        "sent",
        "with_body",
    )

    def __init__(
        self,
        pool: UpstreamPool,
        endpoint: Endpoint,
        message: Sequence[bytes | bytearray | memoryview],
        head_only: bool,
        with_body: bool,
        repeatable: bool,
        sent: Callable[[Seconds, Recall], None],
    ) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.message = message
        self.head_only = head_only
        self.with_body = with_body
        self.repeatable = repeatable
        self.sent = sent
        self.connection: Connection | None = None

    async def __aenter__(self) -> Connection:
        kept = self.pool.take(self.endpoint)
        self.connection = connection = kept or await self.pool.connect(self.endpoint)
        try:
            self._send(connection)
            await connection.answered(self.with_body)
            return connection
        except UpstreamError:
            raced = kept is not None and self.repeatable and connection.raced
            self._drop()
            if not raced:
                raise
        except BaseException:
            self._drop()
            raise
        self.connection = connection = await self.pool.connect(self.endpoint)
        try:
            self._send(connection)
            await connection.answered(self.with_body)
            return connection
        except BaseException:
            self._drop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.connection is not None:
            self.pool.release(self.endpoint, self.connection)
            self.connection = None

    def _send(self, connection: Connection) -> None:
        connection.send(self.message, self.head_only)
        self.sent(Seconds(connection.sent_at), connection.recall)

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.pool.release(self.endpoint, self.connection)
            self.connection = None
