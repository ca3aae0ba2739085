"""Pure: how many instances of a pool should run after all that was asked for lately, and which.

More at once, fewer only after fewer have been enough for a while (`Calm`).

Those that run stay, in the order they are listed: the last one listed stops first, the first one stopped is
started first. (The pods of a stateful set come and go in this order too.) One that is draining is had back
before a stopped one is started. What cannot serve now (down, given up) is left as it is and counts for
nothing, so another runs in its place; nor is anything stopped that nobody knows how to start.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from control.lifecycle import MOVING, Phase
from joulegate.units import Seconds

READINESS = {
    Phase.SERVING: 0,
    Phase.UNSEEN: 0,
    Phase.DRAINING: 1,
    Phase.CHECKING: 2,
    Phase.STARTING: 3,
    Phase.STOPPING: 4,
    Phase.STOPPED: 4,
}
UP = frozenset({Phase.SERVING, Phase.UNSEEN})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One instance of a pool."""

    name: str
    phase: Phase
    scalable: bool = True  # somebody knows how to stop and start it
    healthy: bool = True  # as far as it runs: it answers


def turnout(candidates: Sequence[Candidate], count: int) -> frozenset[str]:
    """Names of those that should run. May hold fewer than `count`: there are no more."""
    lame = {c.name for c in candidates if c.phase in UP and not c.healthy}
    wanted = {c.name for c in candidates if not c.scalable} | lame
    left = count - len(wanted - lame)
    able = [c for c in candidates if c.name not in wanted and c.phase in READINESS]
    able.sort(key=lambda c: READINESS[c.phase])  # a stable sort: then as listed
    return frozenset(wanted | {c.name for c in able[: max(0, left)]})


def movers(candidates: Sequence[Candidate], wanted: frozenset[str], at_once: int) -> frozenset[str]:
    """Those that may begin to move now: all that should run, and so many stops at a time.

    Nothing stops before what should run does.
    """
    moving = [c for c in candidates if c.phase in MOVING]
    starts = [c.name for c in candidates if c.phase is Phase.STOPPED and c.name in wanted]
    stops = [c.name for c in reversed(candidates) if c.phase is Phase.SERVING and c.name not in wanted]
    if any(c.phase not in UP for c in candidates if c.name in wanted):
        stops = []
    return frozenset(starts + stops[: max(0, at_once - len(moving))])


class Calm:
    """The most that was asked for within the last `window` seconds."""

    __slots__ = ("_asked", "_window")

    def __init__(self, window: Seconds) -> None:
        self._window = window
        self._asked: deque[tuple[Seconds, int]] = deque()  # falling counts: each the most since its time

    def settle(self, count: int, now: Seconds) -> int:
        """`count` is asked for now."""
        while self._asked and self._asked[-1][1] <= count:
            self._asked.pop()
        self._asked.append((now, count))
        while now - self._asked[0][0] > self._window:
            self._asked.popleft()
        return self._asked[0][1]
