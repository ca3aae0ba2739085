"""A gate with a place for everybody, which counts what is in flight and keeps every report."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from joulegate.units import Seconds
from router.errors import NoSuchModel
from router.ports import Endpoint, ModelCard, Recall, RelayRequest, Report, Slot


class FakeSlot:
    def __init__(self, gate: "FakeGate", endpoint: Endpoint, request: RelayRequest) -> None:
        self._gate = gate
        self._endpoint = endpoint
        self.request = request
        self.report: Report | None = None
        self.sent_at: list[Seconds] = []
        self.progressed: list[int] = []
        self.responses: list[str] = []
        self.recall: Recall | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    @property
    def header_lines(self) -> bytes:
        lines = f"x-joulegate-pool: {self._endpoint.pool}\r\nx-joulegate-instance: {self._endpoint.name}\r\n"
        return lines.encode()

    def sent(self, now: Seconds, recall: Recall | None = None) -> None:
        self.sent_at.append(now)
        self.recall = recall

    def progress(self, events: int, now: Seconds) -> None:
        self.progressed.append(events)

    def made(self, response: str) -> None:
        self.responses.append(response)

    def joules(self) -> float | None:
        return self._gate.joules

    def close(self, report: Report) -> None:
        if self.report is None:
            self.report = report
            self._gate.in_flight -= 1
            self._gate.reports.append(report)


class FakeGate:
    """`open_` cleared: everybody waits. `retries`: how many second places it gives."""

    def __init__(self, *endpoints: Endpoint, cards: Sequence[ModelCard] = (), retries: int = 0) -> None:
        self.endpoints = list(endpoints)
        self.cards = list(cards)
        self.retries = retries
        self.open_ = asyncio.Event()
        self.open_.set()
        self.joules: float | None = None  # of every request
        self.waiting = 0
        self.in_flight = 0
        self.requests: list[RelayRequest] = []
        self.slots: list[FakeSlot] = []
        self.reports: list[Report] = []
        self.unknown_models: set[str] = set()

    def admit(self, request: RelayRequest) -> AbstractAsyncContextManager[Slot]:
        return self._admit(request, 0)

    def again(self, slot: Slot, report: Report) -> AbstractAsyncContextManager[Slot] | None:
        if self.retries <= 0:
            return None
        self.retries -= 1
        return self._admit(self.requests[-1], 1)

    def models(self) -> Sequence[ModelCard]:
        return self.cards

    @asynccontextmanager
    async def _admit(self, request: RelayRequest, which: int) -> AsyncIterator[Slot]:
        self.requests.append(request)
        if request.query.model in self.unknown_models:
            raise NoSuchModel(f"the model '{request.query.model}' does not exist", param="model")
        self.waiting += 1
        try:
            await self.open_.wait()
        finally:
            self.waiting -= 1
        slot = FakeSlot(self, self.endpoints[which % len(self.endpoints)], request)
        self.slots.append(slot)
        self.in_flight += 1
        yield slot
        assert slot.report is not None, "the relay left a slot open"
