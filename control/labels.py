"""Pure: which pool each instance belongs to, when pools are merged and instances move between them.

A label is all that moves: nothing is stopped for it, and what an instance serves it serves to the end. An
instance may move where one of its kind was configured: what another kind can do there is not known.

Whoever runs stays where it is while its pool asks for it: those at home first, then those with most sessions.
What is over goes to pools that lack one, home first. Then stopped ones, who cost nothing to move, fill up
what is lacking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from control.state import PoolRules


@dataclass(frozen=True, slots=True)
class Labelled:
    """One instance."""

    name: str
    kind: str
    pool: str  # now
    home: str  # as configured
    up: bool
    sessions: int = 0  # that have their prefix there


def served(homes: Sequence[PoolRules], merged: Mapping[str, str]) -> list[PoolRules]:
    """Pools as they are now: each has its own types, and those of the pools that are part of it."""
    return [
        replace(
            home,
            types=home.types.union(*(guest.types for guest in homes if merged.get(guest.name) == home.name)),
        )
        for home in homes
    ]


def labels(
    instances: Sequence[Labelled], counts: Mapping[str, int], merged: Mapping[str, str]
) -> dict[str, str]:
    """The pool of every instance. `counts`: instances that each pool asks for; `merged`: pool -> its host."""
    now = {i.name: merged.get(i.pool, i.pool) for i in instances}
    kinds = {(merged.get(i.home, i.home), i.kind) for i in instances}
    missing = {pool: n - sum(i.up and now[i.name] == pool for i in instances) for pool, n in counts.items()}
    for up in (True, False):
        for i in _spare(instances, now, counts, up=up):
            home = merged.get(i.home, i.home)
            able = [pool for pool, n in missing.items() if n > 0 and (pool, i.kind) in kinds]
            here = now[i.name]
            if not able or (not up and missing.get(here, 0) > 0):
                if not up and here in missing:
                    missing[here] -= 1
                continue
            pool = home if home in able else max(able, key=lambda name: (missing[name], name))
            now[i.name] = pool
            missing[pool] -= 1
    return now


def _spare(
    instances: Sequence[Labelled], now: Mapping[str, str], counts: Mapping[str, int], *, up: bool
) -> list[Labelled]:
    """Those that run and that their pool does not ask for; or all that do not run."""
    if not up:
        return [i for i in instances if not i.up]
    spare = []
    for pool in sorted({now[i.name] for i in instances}):
        here = [i for i in instances if i.up and now[i.name] == pool]
        here.sort(key=lambda i: (i.home != pool, -i.sessions))
        spare += here[counts.get(pool, len(here)) :]
    return spare
