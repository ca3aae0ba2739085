"""Shell: one sweep a period looks after the timers of all connections of a server; none has its own."""

import asyncio
from collections.abc import Collection
from enum import Enum
from typing import Any

from router.limits import EdgeLimits


class Reading(Enum):
    """What the next byte of the client belongs to."""

    IDLE = "between requests"
    HEAD = "request head"
    BODY = "request body"
    DONE = "nothing: the request is whole, its answer is not"
    LINGER = "nothing: refused"
    PARTED = "nothing: closed, but for what the client has not taken yet"


class Warden:
    """Looks at every connection of one server now and then, while there are any.

    A connection says what its client let lapse (`overdue`) and parts with it (`expire`): router.guard.
    """

    def __init__(self, limits: EdgeLimits) -> None:
        shortest = min(limits.idle, limits.head, limits.body, limits.reader)
        self.period = max(0.02, min(1.0, shortest / 4))
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connections: Collection[Any], loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._arm(connections, loop)

    def _arm(self, connections: Collection[Any], loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self.period
        self._timer = loop.call_later(self.period, self._sweep, connections, loop, due)

    def _sweep(self, connections: Collection[Any], loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._timer = None
        now = loop.time()
        if now - due < self.period:  # else the loop stood still: what clients sent meanwhile is not read yet
            for connection in list(connections):
                what = connection.overdue(now)
                if what is not None:
                    connection.expire(what)
        if connections:
            self._arm(connections, loop)
