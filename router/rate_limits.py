"""Pure: what an API key may use up: requests and tokens a minute, requests at a time.

Token buckets that hold a quarter of a minute's worth, so that a limit of 60 a minute is one a second with
bursts of 15, not 60 at the turn of the minute. Tokens are known only at the end of a request: they are taken
then, and a key in debt waits until its bucket has filled up again.
"""

from collections.abc import Mapping
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


class Bucket:
    """`rate` units a second; starts full."""

    __slots__ = ("_at", "_level", "_rate", "_size")

    def __init__(self, per_minute: int, now: Seconds) -> None:
        self._rate = per_minute / 60.0
        self._size = max(1.0, self._rate * BURST)
        self._level = self._size
        self._at = now

    def wait(self, units: float, now: Seconds) -> float:
        """Seconds until `units` are there; 0: now."""
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (units - self._level) / self._rate)

    def take(self, units: float) -> None:
        """May leave a debt."""
        self._level -= units


@dataclass(slots=True)
class _Account:
    limits: KeyLimits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0


class RateLimits:
    """The limits of every key that has one, in one process. `share`: 1/R where R replicas serve the keys."""

    def __init__(self, limits: Mapping[str, KeyLimits], now: Seconds, share: float = 1.0) -> None:
        self._accounts = {name: _account(each, now, share) for name, each in limits.items()}

    def take(self, key: str, now: Seconds) -> None:
        """Count a request in. Raises RateLimited with the time to wait."""
        account = self._accounts.get(key)
        if account is None:
            return
        limits = account.limits
        if limits.concurrency is not None and account.running >= limits.concurrency:
            raise RateLimited(f"this key may run {limits.concurrency} requests at a time", retry_after=1.0)
        if account.requests is not None and (wait := account.requests.wait(1.0, now)) > 0.0:
            raise RateLimited(f"this key may send {limits.rpm} requests a minute", retry_after=wait)
        if account.tokens is not None and (wait := account.tokens.wait(1.0, now)) > 0.0:
            raise RateLimited(f"this key may use {limits.tpm} tokens a minute", retry_after=wait)
        account.running += 1
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
        if account.tokens is not None:
            account.tokens.take(float(tokens))


def _account(limits: KeyLimits, now: Seconds, share: float) -> _Account:
    def bucket(per_minute: int | None) -> Bucket | None:
        return None if per_minute is None else Bucket(max(1, round(per_minute * share)), now)

    return _Account(limits, bucket(limits.rpm), bucket(limits.tpm))
