"""Shell: asks every instance once a second whether it lives and what it carries."""

import asyncio
import logging
from collections.abc import Callable

from control.state import LoadBook
from joulegate.units import Seconds
from router.engine_metrics import MAX_PAGE, read_gauges
from router.fleet import Health, InstanceStatus, Signal
from router.http_client import ControlClient, Unreachable
from router.news import news
from router.ports import Engine
from router.served import listed, misfit

log = logging.getLogger(__name__)
BAD = (Health.SUSPECT, Health.DOWN)
MODELS = "/v1/models"
LOOK_AGAIN = 30.0  # seconds until an engine is asked again what it serves
SOONEST = 0.1  # seconds between two probes, however many requests doubt the instance
Standing = tuple[Health, bool, str, int | None]  # whether it sleeps; why it does not fit; its context


class Prober:
    """One instance's probe. `on_change` is called when the instance becomes usable, stops being so, or takes
    longer contexts or shorter ones."""

    def __init__(
        self,
        status: InstanceStatus,
        book: LoadBook,
        client: ControlClient,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        path: str,
        timeout: float,
    ) -> None:
        self._status = status
        self._book = book
        self._client = client
        self._clock = clock
        self._on_change = on_change
        self._path = path
        self._timeout = timeout
        self._look_at = float("-inf")  # when it is asked next what it serves
        self._held_until = float("-inf")  # so long an engine that need not list its model is held to its list
        self._doubts = asyncio.Event()
        status.ask = self._doubts.set

    async def run(self, interval: float, first_after: float) -> None:
        """Probe for ever, sooner where the instance is doubted. `first_after` spreads a fleet's probes."""
        await self.tick()
        await asyncio.sleep(first_after)
        at_least = min(SOONEST, interval)
        while True:
            await self.tick()
            await asyncio.sleep(at_least)
            await news(self._doubts, interval - at_least)

    async def tick(self) -> None:
        """Ask once. Never raises for what the network or the engine does."""
        now, before = Seconds(self._clock()), self._standing()
        try:
            await self._health(now)
            before = self._told(before)  # before the gauges, which may take their time
            if self._status.endpoint.engine is not Engine.OPENAI:
                await self._gauges()
        except Unreachable as error:
            self._failed(now, str(error))
        self._told(before)

    def _standing(self) -> Standing:
        status = self._status
        return status.health, status.asleep, status.misfit, status.context

    def _told(self, before: Standing) -> Standing:
        """How it stands; whoever sends requests is told if that is another than `before`."""
        status, standing = self._status, self._standing()
        if standing != before:
            misfit_now = status.misfit if status.health is not Health.DOWN else ""
            log.log(
                logging.WARNING if _is_bad(status) else logging.INFO,
                "instance health",
                extra={
                    "instance": status.endpoint.name,
                    "health": status.health.value,
                    "asleep": status.asleep,
                    "problem": misfit_now or status.problem,
                },
            )
            self._on_change()
        return standing

    async def _health(self, now: Seconds) -> None:
        reply = await self._client.get(self._path, self._timeout)
        if reply.status < 500:  # servers without the route answer 404, and live
            await self._models(now)
            self._status.signal(Signal.PROBE_PASSED, now)
        else:
            self._failed(now, f"{self._path} answered {reply.status}")

    def _failed(self, now: Seconds, problem: str) -> None:
        """It may be another that answers next."""
        self._status.signal(Signal.PROBE_FAILED, now, problem)
        self._look_at = now

    async def _models(self, now: Seconds) -> None:
        """Whether it serves what it is asked for: when it comes up, when it is doubted, and now and then.

        vLLM is held to its list. llama.cpp and others serve their one model under any name: they are held to
        theirs for a while when they did not know a request's. TGI knows every name.
        """
        status = self._status
        endpoint = status.endpoint
        due = status.doubted or status.misfit or now >= self._look_at
        if endpoint.engine is Engine.TGI or not endpoint.model or not due:
            return
        if status.doubted:
            self._held_until = now + LOOK_AGAIN
        status.doubted, self._look_at = False, now
        try:
            reply = await self._client.get(MODELS, self._timeout)
        except Unreachable:
            return  # asked again with the next probe
        self._look_at = now + LOOK_AGAIN
        if reply.status < 500:
            served = listed(reply.body) if reply.status == 200 else {}
            held = endpoint.engine is Engine.VLLM or now < self._held_until
            status.misfit = misfit(served, [endpoint.model, *sorted(endpoint.adapters)]) if held else ""
            status.context = served.get(endpoint.model)

    async def _gauges(self) -> None:
        """Read them, and at once how much of it is not ours: a second later our own count has moved on."""
        status, book = self._status, self._book
        running, prompts, asked = book.running, len(book.prompts), Seconds(self._clock())
        try:
            reply = await self._client.get("/metrics", self._timeout)
        except Unreachable:
            return  # what we knew grows stale, and stale means unknown: not that the instance is down
        if reply.status != 200 or len(reply.body) > MAX_PAGE:
            return
        known, gauges = status.gauges.started, read_gauges(reply.body, status.endpoint.engine)
        status.gauges = gauges
        status.gauges_at = Seconds(self._clock())
        status.asleep = gauges.asleep
        if gauges.running == 0 and not gauges.waiting:
            status.idle_at = asked
        # the page was made at some moment since we asked: what came or ended meanwhile is ours all the same
        running, prompts = max(running, book.running), max(prompts, len(book.prompts))
        status.running_elsewhere = max(0, (gauges.running or 0) - running)
        status.waiting_elsewhere = max(0, (gauges.waiting or 0) - prompts)
        if known not in (None, gauges.started):  # another process
            status.doubted = True
            await self._models(status.gauges_at)

    async def close(self) -> None:
        await self._client.close()


def _is_bad(status: InstanceStatus) -> bool:
    return (status.health in BAD and not status.asleep) or status.misfit != ""
