"""Pure: what an API key may use up: requests and tokens a minute, requests at a time.

Token buckets that hold a quarter of a minute's worth, so that a limit of 60 a minute is one a second with
bursts of 15, not 60 at the turn of the minute. Tokens are known only at the end of a request: they are taken
then, and a key in debt waits until its bucket has filled up again.

Replicas tell each other what a key has used. Each keeps a whole bucket and takes out of it what the others
let in, so that together they keep the limit whichever of them a client talks to; what two let in between two
exchanges is a debt to both. While the store is away each keeps to 1/R of every limit.

Requests at a time are never more than the limit: a replica first claims room, then looks at what the others
claim, and uses its claim only if all of them together fit. Whoever looks later sees both, so two that claim
the same place at once do not both get it. What is free is shared out evenly; who needs more claims one more
now and then, by lot, and where the claims do not fit who has room to spare gives it up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zlib import crc32

from joulegate.units import Seconds
from router.errors import RateLimited

BURST = 15.0  # seconds' worth of a limit that may be used at once
PRESSED = 1.0  # seconds after a request that found no more room in which it is not given up


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What one replica has let in for a key since it started."""

    room: int = 0  # requests at a time that it claims
    requests: int = 0
    tokens: int = 0


class Bucket:
    """`per_minute` units a minute; starts full."""

    __slots__ = ("_at", "_level", "_rate", "_share", "_size")

    def __init__(self, per_minute: int, now: Seconds) -> None:
        self._rate = per_minute / 60.0
        self._size = max(1.0, self._rate * BURST)
        self._level = self._size
        self._share = 1.0
        self._at = now

    def wait(self, units: float, now: Seconds) -> float:
        """Seconds until `units` are there; 0: now."""
        rate = self._rate * self._share
        self._level = min(self._size, self._level + (now - self._at) * rate)
        self._at = now
        return max(0.0, (units - self._level) / rate)

    def take(self, units: float) -> None:
        """May leave a debt."""
        self._level -= units

    def fill_at(self, share: float, now: Seconds) -> None:
        """From now on it fills with `share` of its rate."""
        self.wait(0.0, now)
        self._share = share


class _Account:
    __slots__ = (
        "claimed",
        "limits",
        "pressed",
        "replicas",
        "requests",
        "room",
        "running",
        "sent",
        "tokens",
        "used",
    )

    def __init__(self, limits: KeyLimits, now: Seconds) -> None:
        self.limits = limits
        self.requests = None if limits.rpm is None else Bucket(limits.rpm, now)
        self.tokens = None if limits.tpm is None else Bucket(limits.tpm, now)
        self.room = self.claimed = limits.concurrency or 0  # requests at a time here, until the next exchange
        self.pressed = float("-inf")  # when there was no room last
        self.running = self.sent = self.used = 0
        self.replicas: dict[str, KeyUse] = {}  # as heard last

    def check(self, now: Seconds) -> None:
        """Raises RateLimited with the time to wait."""
        limits = self.limits
        if limits.concurrency is not None and self.running >= self.room:
            self.pressed = now
            raise RateLimited(f"this key may run {limits.concurrency} requests at a time", retry_after=1.0)
        if self.requests is not None and (wait := self.requests.wait(1.0, now)) > 0.0:
            raise RateLimited(f"this key may send {limits.rpm} requests a minute", retry_after=wait)
        if self.tokens is not None and (wait := self.tokens.wait(1.0, now)) > 0.0:
            raise RateLimited(f"this key may use {limits.tpm} tokens a minute", retry_after=wait)

    def buckets(self) -> Iterable[Bucket]:
        return [bucket for bucket in (self.requests, self.tokens) if bucket is not None]

    def hear(self, others: Mapping[str, KeyUse], now: Seconds) -> None:
        for bucket in self.buckets():
            bucket.fill_at(1.0, now)
        for name, use in others.items():
            before = self.replicas.get(name, use)  # new to us: what it did before is not ours to take
            if use.requests < before.requests or use.tokens < before.tokens:
                before = KeyUse()  # it has started again
            if self.requests is not None:
                self.requests.take(use.requests - before.requests)
            if self.tokens is not None:
                self.tokens.take(use.tokens - before.tokens)
        strangers = not self.replicas and others
        self.replicas = dict(others)
        limit = self.limits.concurrency
        if limit is not None and self.claimed + self._others() <= limit:
            self.room = self.claimed
        elif strangers:
            self.room = min(self.room, self.running)  # one of us came just now, and knew nothing of the other

    def tell(self, lucky: bool, now: Seconds) -> KeyUse:
        """Claim what may be needed until the next exchange. `lucky`: it is our turn to claim one more."""
        limit, running = self.limits.concurrency, self.running
        if limit is not None:
            others = self._others()
            free, pressed = limit - running - others, now - self.pressed < PRESSED
            claim = running + max(0, free) // (len(self.replicas) + 1) + (lucky and free > 0)
            if pressed or self.claimed + others <= limit:
                claim = max(claim, self.room)
            if pressed and lucky:
                claim = max(claim, running + 1)
            self.claimed = claim
            self.room = min(self.room, claim)
        return KeyUse(self.claimed, self.sent, self.used)

    def _others(self) -> int:
        return sum(use.room for use in self.replicas.values())

    def alone(self, replicas: int, now: Seconds) -> None:
        for bucket in self.buckets():
            bucket.fill_at(1.0 / replicas, now)
        if self.limits.concurrency is not None:
            self.room = self.claimed = max(1, self.limits.concurrency // replicas)


class RateLimits:
    """The limits of every key that has one, in one process."""

    def __init__(self, limits: Mapping[str, KeyLimits], now: Seconds, replica: str = "") -> None:
        self._replica = replica
        self._told = 0  # exchanges
        self._accounts = {name: _Account(each, now) for name, each in limits.items()}

    def change(self, limits: Mapping[str, KeyLimits], now: Seconds) -> None:
        """Take over new limits. What keys have used so far stays where a limit is as it was."""
        before, self._accounts = self._accounts, {}
        for name, each in limits.items():
            known = before.get(name)
            if known is None or known.limits != each:
                fresh = _Account(each, now)
                fresh.running = 0 if known is None else known.running
                known = fresh
            self._accounts[name] = known

    def take(self, key: str, now: Seconds) -> None:
        """Count a request in. Raises RateLimited with the time to wait."""
        account = self._accounts.get(key)
        if account is None:
            return
        account.check(now)
        account.running += 1
        account.sent += 1
        if account.requests is not None:
            account.requests.take(1.0)

    def take_again(self, key: str) -> None:
        """A second attempt of a request that was counted in."""
        if (account := self._accounts.get(key)) is not None:
            account.running += 1

    def done(self, key: str, tokens: int) -> None:
        """The request is over; what it used is known."""
        account = self._accounts.get(key)
        if account is None:
            return
        account.running = max(0, account.running - 1)
        account.used += tokens
        if account.tokens is not None:
            account.tokens.take(float(tokens))

    def tell(self, replicas: int, now: Seconds) -> dict[str, KeyUse]:
        """What the other replicas are told now."""
        self._told += 1
        lucky = crc32(f"{self._replica}{self._told}".encode()) % replicas == 0
        return {name: account.tell(lucky, now) for name, account in self._accounts.items()}

    def hear(self, others: Mapping[str, Mapping[str, KeyUse]], now: Seconds) -> None:
        """What each of the other replicas has let in, by its name."""
        for key, account in self._accounts.items():
            account.hear({name: uses.get(key, KeyUse()) for name, uses in others.items()}, now)

    def alone(self, replicas: int, now: Seconds) -> None:
        """The others cannot be heard; there were `replicas` of us."""
        for account in self._accounts.values():
            account.alone(replicas, now)
