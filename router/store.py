"""Shell: what several gateway replicas share. The only module that imports redis.

Redis gives liveness, never safety: it elects which replica asks the agents for a lease, and carries each
replica's load to the others. The agents' own leases and tokens are what clocks depend on, so a lost, flushed
or split Redis costs efficiency (each replica acts on its own load and its 1/R share), never an objective.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from redis import asyncio as redis
from redis.exceptions import RedisError

LEADER_TTL_MS = 1500
TOLD_TTL_MS = 600_000
REPLICA_TTL_MS = 1000
MADE_TTL = 3600  # seconds after the last response
MOST_MADE = 20_000  # responses that are remembered
MOST_READ = 5000  # of them in one call
TIMEOUT = 0.25  # seconds; no call of a request waits for Redis, but the loop that does must not hang

# Renew if it is ours, take it if nobody has it. One round trip, atomic.
LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] or not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class StoreDown(Exception):
    """The shared store did not answer; the message says how."""


class Store(Protocol):
    """State shared by replicas. Every call may raise StoreDown."""

    async def publish(self, load: bytes) -> None:
        """Tell the others this replica's load; it is forgotten after a second without news."""
        ...

    async def peers(self) -> Mapping[str, bytes]:
        """Loads of the other living replicas, by name."""
        ...

    async def lead(self) -> bool:
        """Take or renew the lead. True while this replica leads."""
        ...

    async def resign(self) -> None: ...

    async def tell(self, learned: bytes) -> None:
        """Leave what this replica has learned for the others, for ten minutes."""
        ...

    async def told(self) -> bytes | None:
        """What another living replica left, each in turn; None where there is nothing."""
        ...

    async def made(self, responses: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """Tell which instance made which response; what all have told since the last call."""
        ...

    async def close(self) -> None: ...


class MemoryStore:
    """One replica alone: it leads, and has no peers."""

    async def publish(self, load: bytes) -> None:
        return None

    async def peers(self) -> Mapping[str, bytes]:
        return {}

    async def lead(self) -> bool:
        return True

    async def resign(self) -> None:
        return None

    async def tell(self, learned: bytes) -> None:
        return None

    async def told(self) -> bytes | None:
        return None

    async def made(self, responses: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        return ()

    async def close(self) -> None:
        return None


class RedisStore:
    """Redis 7+ or Valkey. Keys live under `joulegate:<cluster>:`. `timeout`: seconds for one call."""

    def __init__(self, url: str, cluster: str, replica: str, timeout: float = TIMEOUT) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=None, max_connections=4
        )
        self._prefix = f"joulegate:{cluster}:"
        self._replica = replica
        self._read = "0-0"  # how far the list of responses was read
        self._turn = 0  # of the replicas that are asked what they have learned
        self._lead = self._redis.register_script(LEAD)
        self._resign = self._redis.register_script(RESIGN)

    async def publish(self, load: bytes) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(f"{self._prefix}load:{self._replica}", load, px=REPLICA_TTL_MS)
                pipe.zadd(f"{self._prefix}replicas", {self._replica: 0})
                await pipe.execute()
        except RedisError as error:
            raise StoreDown(f"publish: {error}") from error

    async def peers(self) -> Mapping[str, bytes]:
        try:
            others = await self._others()
            if not others:
                return {}
            loads = await self._redis.mget([f"{self._prefix}load:{name}" for name in others])
            gone = [name for name, load in zip(others, loads, strict=True) if load is None]
            if gone:
                await self._redis.zrem(f"{self._prefix}replicas", *gone)
        except RedisError as error:
            raise StoreDown(f"peers: {error}") from error
        return {name: load for name, load in zip(others, loads, strict=True) if isinstance(load, bytes)}

    async def tell(self, learned: bytes) -> None:
        try:
            await self._redis.set(f"{self._prefix}learned:{self._replica}", learned, px=TOLD_TTL_MS)
        except RedisError as error:
            raise StoreDown(f"tell: {error}") from error

    async def told(self) -> bytes | None:
        self._turn += 1
        try:
            others = await self._others()
            if not others:
                return None
            found = await self._redis.get(f"{self._prefix}learned:{others[self._turn % len(others)]}")
        except RedisError as error:
            raise StoreDown(f"told: {error}") from error
        return found if isinstance(found, bytes) else None

    async def made(self, responses: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        key = f"{self._prefix}made"
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for pair in responses:
                    pipe.xadd(key, {b"made": "\n".join(pair)}, maxlen=MOST_MADE)
                if responses:
                    pipe.expire(key, MADE_TTL)
                pipe.xread({key: self._read}, count=MOST_READ)
                *_, found = await pipe.execute()
        except RedisError as error:
            raise StoreDown(f"made: {error}") from error
        entries = [entry for _, some in found for entry in some]
        if entries:
            self._read = entries[-1][0].decode()
        pairs = [str(fields.get(b"made", b""), "utf-8", "replace").partition("\n") for _, fields in entries]
        return [(response, instance) for response, _, instance in pairs]

    async def _others(self) -> list[str]:
        names = await self._redis.zrange(f"{self._prefix}replicas", 0, 63)
        others = [str(name, "utf-8") for name in names if isinstance(name, bytes)]
        return [name for name in others if name != self._replica]

    async def lead(self) -> bool:
        try:
            return bool(await self._lead(keys=[f"{self._prefix}leader"], args=[self._replica, LEADER_TTL_MS]))
        except RedisError as error:
            raise StoreDown(f"lead: {error}") from error

    async def resign(self) -> None:
        try:
            await self._resign(keys=[f"{self._prefix}leader"], args=[self._replica])
        except RedisError as error:
            raise StoreDown(f"resign: {error}") from error

    async def close(self) -> None:
        await self._redis.aclose()
