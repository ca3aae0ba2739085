"""Shell: what replicas learn of output lengths, passed on through the store.

A replica that starts asks at once, so it does not begin from nothing. The load exchange says when the store
is lost; here a lost store only means that nothing is passed on.
"""

import asyncio
import logging
from collections.abc import Callable

from joulegate.domain import LengthPredictor
from predictor.length import HistoryPredictor
from predictor.length_share import read, take, tell
from router.store import Store, StoreDown

log = logging.getLogger(__name__)
PERIOD = 30.0  # seconds between two exchanges, give or take a quarter


class LearnedShare:
    """One replica's part: asks one of the others, then tells what it knows. `rng` is in [0, 1)."""

    def __init__(self, store: Store, predictor: LengthPredictor, rng: Callable[[], float]) -> None:
        self._store = store
        self._predictor = predictor
        self._rng = rng

    async def run(self) -> None:
        while True:
            await self.exchange()
            await asyncio.sleep(PERIOD * (0.75 + 0.5 * self._rng()))

    async def exchange(self) -> None:
        predictor = self._predictor
        if not isinstance(predictor, HistoryPredictor):
            return
        try:
            message = await self._store.told()
            if message is not None:
                await _take(predictor, message)
            await self._store.tell(tell(predictor))
        except StoreDown as error:
            log.debug("nothing passed on", extra={"problem": str(error)})


async def _take(predictor: HistoryPredictor, message: bytes) -> None:
    """In pieces: requests go between them."""
    try:
        for _ in take(predictor, read(message)):
            await asyncio.sleep(0)
    except ValueError as error:
        log.warning("what a replica has learned cannot be read", extra={"problem": str(error)})
