"""Replicas that pass on what they learned, over a real Redis."""

import random
import uuid

import pytest

from joulegate.domain import Cuts, LengthQuery
from predictor.length import HistoryPredictor
from router.learned_share import LearnedShare
from router.store import MemoryStore, RedisStore

QUERY = LengthQuery("m", "team", 100)


def taught(tokens: int, times: int) -> HistoryPredictor:
    predictor = HistoryPredictor(Cuts())
    for _ in range(times):
        predictor.observe(QUERY, predictor.predict(QUERY), tokens)
    return predictor


async def test_a_replica_that_joins_learns_from_each_of_the_others_in_turn(redis_url: str) -> None:
    cluster = uuid.uuid4().hex
    known = {"gw-1": taught(700, 100), "gw-2": HistoryPredictor(Cuts()), "gw-3": HistoryPredictor(Cuts())}
    stores = {name: RedisStore(redis_url, cluster, name, timeout=10.0) for name in known}
    shares = {name: LearnedShare(stores[name], known[name], random.Random(1).random) for name in known}
    for name in ("gw-1", "gw-2"):
        await stores[name].publish(b"{}")
        await shares[name].exchange()
    await stores["gw-3"].publish(b"{}")
    for _ in range(2):
        await shares["gw-3"].exchange()
    assert known["gw-3"].predict(QUERY).q50 == pytest.approx(known["gw-1"].predict(QUERY).q50, rel=0.02)
    for store in stores.values():
        await store.close()


async def test_what_cannot_be_read_is_said_and_changes_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, predictor = uuid.uuid4().hex, taught(700, 100)
    before = predictor.table.dump()
    one, two = (RedisStore(redis_url, cluster, name, timeout=10.0) for name in ("gw-1", "gw-2"))
    await two.publish(b"{}")
    await two.tell(b"\x00 nothing")
    await LearnedShare(one, predictor, random.Random(1).random).exchange()
    assert "cannot be read" in caplog.text
    assert predictor.table.dump() == before
    await one.close()
    await two.close()


async def test_without_a_store_or_with_one_that_is_gone_nothing_happens() -> None:
    predictor = taught(700, 10)
    before = predictor.table.dump()
    gone = RedisStore("redis://127.0.0.1:1/0", "c", "gw-1")
    for store in (MemoryStore(), gone):
        await LearnedShare(store, predictor, random.Random(1).random).exchange()
    assert predictor.table.dump() == before
    await gone.close()
