"""Shell: this replica among others: who leads, what the others carry, how many share the headroom.

A store that does not answer changes nothing at once: who led goes on asking the agents for leases and who
followed does not start, and the agents' own leases settle any doubt. Loads of others are unknown then: the
engines' own gauges and a 1/R share of the headroom remain.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from control.state import LoadBook
from joulegate.units import Seconds
from router.deaths import Deaths
from router.news import news
from router.observe import Condition
from router.plan_share import PlanShare
from router.proofs import Proofs
from router.rate_limits import RateLimits
from router.replica_load import NO_LOAD, News, PeerLoad, decode, encode, total
from router.responses import Makers
from router.store import Store, StoreDown

log = logging.getLogger(__name__)
PERIOD = 0.1  # seconds between two exchanges of load
AT_MOST_EVERY = 0.02  # seconds, however often load steps up
RENEW_AFTER = 0.5  # seconds; the lead lives three times as long in the store


class Replicas:
    """`leads`, `peers` and `count` are the picture of the last exchange."""

    def __init__(
        self,
        store: Store,
        books: Mapping[str, LoadBook],
        limits: RateLimits,
        proofs: Proofs,
        makers: Makers,
        plan: PlanShare,
        deaths: Deaths,
        condition: Condition,
        clock: Callable[[], float],
        on_count: Callable[[int], None],
    ) -> None:
        self.leads = False
        self.leaving = False  # told to stop
        self.count = 1
        self.peers: Mapping[str, PeerLoad] = {}
        self._store = store
        self._books = books
        self._limits = limits
        self._proofs = proofs
        self._makers = makers
        self._plan = plan
        self._deaths = deaths
        self._condition = condition
        self._clock = clock
        self._on_count = on_count
        self._now = asyncio.Event()
        self._heard = 0.0
        self._renew_at = 0.0  # when the lead is renewed

    def load(self, instance: str) -> PeerLoad:
        """What the others have at `instance`; what is due there, counted from when it may have been sent."""
        found = self.peers.get(instance, NO_LOAD)
        if not found.prompts:
            return found
        return replace(found, due_in=found.due_in - PERIOD - (self._clock() - self._heard))

    def push(self) -> None:
        """Our load stepped up: tell the others now."""
        self._now.set()

    async def run(self) -> None:
        while True:
            await self.tick()
            await asyncio.sleep(AT_MOST_EVERY)
            await news(self._now, PERIOD - AT_MOST_EVERY)

    async def tick(self) -> None:
        """Exchange loads; now and then take or renew the lead."""
        try:
            now = Seconds(self._clock())
            await self._store.publish(self._news(now))
            others = await self._store.peers()
            news = self._decoded(others)
            self._heard = self._clock()
            self._makers.hear(await self._store.made(self._makers.tell()))
            await self._elect(news.values())
        except StoreDown as error:
            if self._condition.store_up:
                log.warning("store lost", extra={"problem": str(error)})
            self._condition.store_up = False
            self.peers = {}
            self._plan.hear({}, frozenset())
            self._deaths.hear(())
            self._limits.alone(self.count, Seconds(self._clock()))
            return
        if not self._condition.store_up:
            log.info("store is back")
        self._condition.store_up = True
        self.peers = total(each.loads for each in news.values())
        self._limits.hear({name: each.uses for name, each in news.items()}, Seconds(self._clock()))
        if not self.leads:
            self._proofs.hear((each.proven for each in news.values()), Seconds(self._clock()))
        self._deaths.hear(each.deaths for each in news.values())
        phases = {name: phase for each in news.values() for name, phase in each.phases.items()}
        self._plan.hear(phases, frozenset(ask for each in news.values() for ask in each.asks))
        if len(others) + 1 != self.count:
            self.count = len(others) + 1
            self._on_count(self.count)
            log.info("replicas", extra={"count": self.count})

    async def close(self) -> None:
        """Resign, so that another leads at once."""
        try:
            await self._store.resign()
        except StoreDown as error:
            log.warning("lead not resigned: it runs out", extra={"problem": str(error)})
        await self._store.close()

    async def _elect(self, others: Collection[News]) -> None:
        """Take or renew the lead; who was told to stop leaves it to whoever stays."""
        if self.leaving and not all(each.leaving for each in others):
            if self.leads:
                await self._store.resign()
            self._set_leads(False)
        elif not self.leads or self._clock() >= self._renew_at:
            self._renew_at = self._clock() + RENEW_AFTER
            self._set_leads(await self._store.lead())

    def _news(self, now: Seconds) -> bytes:
        plan = self._plan
        uses, proven, deaths = self._limits.tell(self.count, now), self._proofs.tell(), self._deaths.tell(now)
        return encode(self._books, uses, proven, plan.phases, plan.asks, deaths, self.leaving, now)

    def _decoded(self, messages: Mapping[str, bytes]) -> dict[str, News]:
        news = {}
        for name, message in messages.items():
            try:
                news[name] = decode(message)
            except (ValueError, TypeError) as error:
                log.warning("a replica's load cannot be read", extra={"replica": name, "problem": str(error)})
        return news

    def _set_leads(self, leads: bool) -> None:
        if leads != self.leads:
            log.info("leadership", extra={"leads": leads})
        self.leads = leads
