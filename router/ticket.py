"""Shell: a place on one instance, as the relay holds it (`router.ports.Slot`)."""

import asyncio
from typing import Protocol

from joulegate.units import Seconds
from router.errors import GatewayError
from router.pools import Member, Trip
from router.ports import Endpoint, Recall, RelayRequest, Report


class Owner(Protocol):
    """Whoever is told what happens to a ticket: the gate."""

    def sent(self, ticket: "Ticket", now: Seconds) -> None: ...

    def progressed(self, ticket: "Ticket", events: int, now: Seconds) -> None: ...

    def made(self, ticket: "Ticket", response: str) -> None: ...

    def joules(self, ticket: "Ticket") -> float | None: ...

    def closed(self, ticket: "Ticket", report: Report) -> None: ...


class Ticket:
    """Waiting until `member` is set, open until it is closed once."""

    endpoint: Endpoint  # of its place, once it has one
    header_lines: bytes

    __slots__ = (
        "_closed",
        "_future",
        "_owner",
        "_refusal",
        "endpoint",
        "header_lines",
        "member",
        "recall",
        "request",
        "tokens",
        "trip",
        "was_sent",
    )

    def __init__(self, owner: Owner, request: RelayRequest, trip: Trip | None) -> None:
        self.request = request
        self.trip = trip
        self.member: Member | None = None
        self.was_sent = False  # its body reached the instance
        self.recall: Recall | None = None  # takes it back from there
        self.tokens = 0  # input and output, as the engine reported them
        self._owner = owner
        self._future: asyncio.Future[None] | None = None
        self._refusal: GatewayError | None = None
        self._closed = False

    def sent(self, now: Seconds, recall: Recall | None = None) -> None:
        self.was_sent = True
        self.recall = recall
        self._owner.sent(self, now)

    def progress(self, events: int, now: Seconds) -> None:
        if not self._closed:
            self._owner.progressed(self, events, now)

    def made(self, response: str) -> None:
        self._owner.made(self, response)

    def joules(self) -> float | None:
        return self._owner.joules(self)

    def close(self, report: Report) -> None:
        if not self._closed:
            self._closed = True
            self.tokens = (report.prompt_tokens or 0) + (report.completion_tokens or 0)
            self._owner.closed(self, report)

    def grant(self, member: Member) -> None:
        self.member = member
        self.endpoint = member.endpoint
        self.header_lines = member.header_lines
        self._settle()

    def refuse(self, error: GatewayError) -> None:
        self._refusal = error
        self._settle()

    async def granted(self) -> None:
        """Wait for the grant. Raises the refusal."""
        if self.member is None and self._refusal is None:
            self._future = asyncio.get_running_loop().create_future()
            await self._future
        if self._refusal is not None:
            raise self._refusal

    def _settle(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
