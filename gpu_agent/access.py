"""Pure: who is asking, and what that client may do."""

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from joulegate.settings.agent import Scope
from joulegate.units import Seconds

ALL: frozenset[Scope] = frozenset({"read", "boost", "clocks", "caps"})


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    scopes: frozenset[Scope]
    gpus: frozenset[str] = frozenset()  # empty: all

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def forbidden(self, gpus: Iterable[str]) -> list[str]:
        """Those it may not touch."""
        return sorted(set(gpus) - self.gpus) if self.gpus else []


@dataclass(frozen=True, slots=True)
class Known:
    """A client and the secret that proves it."""

    client: Client
    token: bytes


def identify(known: Sequence[Known], authorization: bytes) -> Client | None:
    """The client whose token this is; without any configured, whoever can connect. Compares all of them."""
    if not known:
        return Client("local", ALL)
    shown = authorization.removeprefix(b"Bearer ") if authorization.startswith(b"Bearer ") else b""
    found = None
    for each in known:
        if hmac.compare_digest(each.token, shown):
            found = each.client
    return found


@dataclass(frozen=True, slots=True)
class Bucket:
    """A rate limit: `level` requests may still come at once."""

    level: float
    at: Seconds


def take(bucket: Bucket, rate: float, burst: float, now: Seconds) -> tuple[Bucket, bool]:
    """One request out of the bucket; False when it is empty."""
    level = min(burst, bucket.level + (now - bucket.at) * rate)
    return (Bucket(level - 1.0, now), True) if level >= 1.0 else (Bucket(level, now), False)
