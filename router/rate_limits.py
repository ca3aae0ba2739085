"""Pure: what an API key may use up: requests and tokens a minute, requests at a time.

Token buckets that hold a quarter of a minute's worth, so that a limit of 60 a minute is one a second with
bursts of 15, not 60 at the turn of the minute. Tokens are known only at the end of a request: they are taken
then, and a key in debt waits until its bucket has filled up again.

Replicas tell each other what a key has used. Each keeps a whole bucket and takes out of it what the others
let in, so that together they keep the limit whichever of them a client talks to; what two let in between two
exchanges is a debt to both. Requests at a time: each takes its part of what the others leave free. While the
store is away each keeps to 1/R of every limit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from joulegate.units import Seconds
from router.errors import RateLimited

BURST = 15.0  # seconds' worth of a limit that may be used at once


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What one replica has let in for a key since it started."""

    room: int = 0  # requests at a time that it may let in now
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
    __slots__ = ("limits", "replicas", "requests", "room", "running", "sent", "tokens", "used")

    def __init__(self, limits: KeyLimits, now: Seconds) -> None:
        self.limits = limits
        self.requests = None if limits.rpm is None else Bucket(limits.rpm, now)
        self.tokens = None if limits.tpm is None else Bucket(limits.tpm, now)
        self.room = limits.concurrency  # requests at a time here, until the next exchange
        self.running = self.sent = self.used = 0
        self.replicas: dict[str, KeyUse] = {}  # as heard last

    def check(self, now: Seconds) -> None:
        """Raises RateLimited with the time to wait."""
        limits = self.limits
        if self.room is not None and self.running >= self.room:
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
        self.replicas = dict(others)
        if self.limits.concurrency is not None:
            free = self.limits.concurrency - self.running - sum(use.room for use in others.values())
            self.room = max(0, self.running + max(min(1, free), free // (len(others) + 1)))

    def tell(self) -> KeyUse:
        return KeyUse(self.room or 0, self.sent, self.used)

    def alone(self, replicas: int, now: Seconds) -> None:
        for bucket in self.buckets():
            bucket.fill_at(1.0 / replicas, now)
        if self.limits.concurrency is not None:
            self.room = max(1, self.limits.concurrency // replicas)


class RateLimits:
    """The limits of every key that has one, in one process."""

    def __init__(self, limits: Mapping[str, KeyLimits], now: Seconds) -> None:
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

    def tell(self) -> dict[str, KeyUse]:
        """What the other replicas are told now."""
        return {name: account.tell() for name, account in self._accounts.items()}

    def hear(self, others: Mapping[str, Mapping[str, KeyUse]], now: Seconds) -> None:
        """What each of the other replicas has let in, by its name."""
        for key, account in self._accounts.items():
            account.hear({name: uses.get(key, KeyUse()) for name, uses in others.items()}, now)

    def alone(self, replicas: int, now: Seconds) -> None:
        """The others cannot be heard; there were `replicas` of us."""
        for account in self._accounts.values():
            account.alone(replicas, now)
