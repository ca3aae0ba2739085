"""Pure: which power caps stand, which should, and in what order they are moved.

A set of caps is taken up in two steps: first every cap that falls, on every node; only when all of them are
confirmed those that rise. So the caps that stand never sum to more than a budget because a node is slow or
gone. They are left alone while they keep the budgets and press nobody: each change costs the driver a write
and the agent's disk one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf

from control.power_budget import Share
from joulegate.units import Watts

GRAIN = 5.0  # watts: caps are whole multiples, rounded down
PRESSED = 1.1  # a cap below so many times what is expected should rise, if
WORTH = 1.05  # it can rise by so much


@dataclass(slots=True, eq=False)
class CapBook:
    """Watts by GPU; infinity: no cap of ours."""

    standing: dict[str, float] = field(default_factory=dict)  # as agents confirmed; absent: not known
    wanted: Mapping[str, float] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # by agent: why it sets no caps
    complete: bool = False  # every node of the tree has been heard of

    def revise(
        self,
        shares: Mapping[str, Share],
        ranges: Mapping[str, tuple[Watts, Watts]],
        limits: Sequence[tuple[Collection[str], Watts]],
        complete: bool,
    ) -> None:
        """`limits`: members and budget of each domain. Takes new caps up only where that is worth it."""
        self.complete = complete
        fresh = dict.fromkeys(self.standing, inf)  # who has left the tree gets its own cap back
        fresh |= {uuid: _grained(share.cap, ranges[uuid]) for uuid, share in shares.items()}
        now = {uuid: min(self.standing.get(uuid, inf), ranges[uuid][1]) for uuid in shares}
        broken = any(sum(now[uuid] for uuid in members) > budget for members, budget in limits)
        pressed = any(
            now[uuid] < PRESSED * share.watts and fresh[uuid] > WORTH * now[uuid]
            for uuid, share in shares.items()
        )
        lifted = any(cap == inf and self.standing.get(uuid, 0.0) < inf for uuid, cap in fresh.items())
        if broken or pressed or lifted or fresh.keys() != self.wanted.keys():
            self.wanted = fresh

    def adopt(self, caps: Mapping[str, float]) -> None:
        """Caps that somebody before us has set, as agents report them: from now on they are ours to lift."""
        self.standing = {**self.standing, **caps}

    def lift(self) -> None:
        """No budget holds any more."""
        self.complete = True
        self.wanted = dict.fromkeys(self.standing, inf)

    def due(self, gpus: Collection[str]) -> dict[str, Watts | None]:
        """What to tell the node of these GPUs now; None: give back the cap that was there before."""
        falling = {uuid for uuid, cap in self.wanted.items() if cap < self.standing.get(uuid, inf)}
        if not falling and self.complete:
            moves = {u for u, cap in self.wanted.items() if cap > self.standing.get(u, 0.0)}
        else:
            moves = falling
        return {
            uuid: None if self.wanted[uuid] == inf else Watts(self.wanted[uuid])
            for uuid in gpus
            if uuid in moves
        }

    def confirm(self, agent: str, caps: Mapping[str, float]) -> None:
        """The agent's GPUs have these caps now."""
        self.refusals.pop(agent, None)
        self.standing.update(caps)

    def refused(self, agent: str, why: str) -> None:
        self.refusals[agent] = why


def _grained(cap: Watts, limits: tuple[Watts, Watts]) -> float:
    low, high = limits
    if cap >= high:
        return inf
    return max(float(low), GRAIN * floor(cap / GRAIN))
