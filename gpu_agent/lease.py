"""Pure: who may lower clocks. One lease a node, granted on the agent's own clock.

The first holder to ask gets a lease with a token that no lease ever had before; it renews by showing the
token. Anybody else is told who holds it and for how long. A lease that ran out is gone: its token is never
good again.
"""

from dataclasses import dataclass, replace

from joulegate.units import Seconds


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    token: int
    expires: Seconds  # agent's monotonic clock


@dataclass(frozen=True, slots=True)
class Granted:
    lease: Lease
    fresh: bool  # a new lease: what the one before wanted no longer counts


@dataclass(frozen=True, slots=True)
class Refused:
    holder: str  # who holds it; empty when nobody does
    retry_in: Seconds
    message: str


@dataclass(frozen=True, slots=True)
class Grace:
    """How late things may be: the node's own jitter at most, and what the watchdog adds before it kills."""

    jitter: Seconds
    watchdog: Seconds


def ask(
    current: Lease | None, holder: str, token: int | None, ttl: Seconds, now: Seconds, next_token: int
) -> Granted | Refused:
    """Renew the lease of `token`, or grant a new one under `next_token` when none is live."""
    live = current if current is not None and now < current.expires else None
    expires = Seconds(now + ttl)
    if live is None:
        if token is not None:
            return Refused("", Seconds(0.0), "the lease of this token has ended; ask for a new one")
        return Granted(Lease(holder, next_token, expires), fresh=True)
    if live.holder == holder and live.token == token:
        return Granted(replace(live, expires=expires), fresh=False)
    left = Seconds(live.expires - now)
    if live.token == token:
        return Refused(live.holder, left, "the token belongs to another holder")
    return Refused(live.holder, left, "another lease is live")
