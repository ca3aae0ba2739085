"""Shell: which replica asks the agents for leases.

A store that does not answer changes nothing: who led goes on asking and who followed does not start, and the
agents' own leases settle any doubt.
"""

import asyncio
import logging

from router.observe import Condition
from router.store import Store, StoreDown

log = logging.getLogger(__name__)
PERIOD = 0.5  # seconds; a third of the lead's life in the store


class Leadership:
    def __init__(self, store: Store, condition: Condition) -> None:
        self._store = store
        self._condition = condition
        self._leads = False

    @property
    def leads(self) -> bool:
        return self._leads

    async def run(self) -> None:
        while True:
            await self.tick()
            await asyncio.sleep(PERIOD)

    async def tick(self) -> None:
        """Take or renew the lead."""
        try:
            leads = await self._store.lead()
        except StoreDown as error:
            if self._condition.store_up:
                log.warning("store lost", extra={"problem": str(error)})
            self._condition.store_up = False
            return
        if not self._condition.store_up:
            log.info("store is back")
        self._condition.store_up = True
        if leads != self._leads:
            log.info("leadership", extra={"leads": leads})
        self._leads = leads

    async def close(self) -> None:
        try:
            await self._store.resign()
        except StoreDown as error:
            log.warning("lead not resigned: it runs out", extra={"problem": str(error)})
        await self._store.close()
