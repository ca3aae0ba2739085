import asyncio
import socket
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from router.store import MemoryStore, RedisStore, StoreDown


@pytest_asyncio.fixture
async def pair(redis_url: str) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    cluster = uuid.uuid4().hex
    one, two = RedisStore(redis_url, cluster, "gw-1"), RedisStore(redis_url, cluster, "gw-2")
    yield one, two
    await one.close()
    await two.close()


async def test_one_replica_leads_and_the_other_follows_when_it_resigns(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    one, two = pair
    assert await one.lead()
    assert not await two.lead()
    assert await one.lead(), "the leader renews"
    await two.resign()
    assert not await two.lead(), "resigning somebody else's lead does nothing"
    await one.resign()
    assert await two.lead()


async def test_replicas_see_each_other_but_not_themselves(pair: tuple[RedisStore, RedisStore]) -> None:
    one, two = pair
    await one.publish(b"1")
    await two.publish(b"2")
    assert dict(await one.peers()) == {"gw-2": b"2"}
    assert dict(await two.peers()) == {"gw-1": b"1"}


async def test_a_silent_replica_is_forgotten(pair: tuple[RedisStore, RedisStore]) -> None:
    one, two = pair
    await two.publish(b"2")
    assert "gw-2" in await one.peers()
    for _ in range(100):
        if not await one.peers():
            return
        await asyncio.sleep(0.1)
    pytest.fail("gw-2 is still there")


async def test_a_store_that_is_not_there_says_so() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        await _says_so(RedisStore(f"redis://127.0.0.1:{taken.getsockname()[1]}/0", "c", "gw-1"))


async def _says_so(store: RedisStore) -> None:
    with pytest.raises(StoreDown):
        await store.lead()
    with pytest.raises(StoreDown):
        await store.publish(b"1")
    await store.close()


async def test_alone_a_replica_leads() -> None:
    store = MemoryStore()
    assert await store.lead()
    assert await store.peers() == {}
