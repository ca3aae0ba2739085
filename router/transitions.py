"""Pure: what stopping and starting instances took: for the next plan, for metrics and for people."""

from collections import deque
from dataclasses import dataclass, field

from joulegate.units import Joules, Seconds

RECENT = 200
WAYS = ("stop", "start")
LEARN = 0.3  # weight of the latest


@dataclass(frozen=True, slots=True)
class Transition:
    """One that is over. `joules` of the instance's GPUs meanwhile; None: nobody meters them."""

    instance: str
    way: str  # stop or start
    outcome: str  # done or failed
    seconds: float
    joules: Joules | None
    ended: Seconds
    problem: str = ""


@dataclass(slots=True)
class Sums:
    """Of one instance and one way."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    joules: float = 0.0


@dataclass(slots=True)
class Transitions:
    """All of one gateway."""

    recent: deque[Transition] = field(default_factory=lambda: deque(maxlen=RECENT))
    sums: dict[tuple[str, str], Sums] = field(default_factory=dict)  # by instance and way
    usual: dict[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)  # seconds, joules

    def add(self, one: Transition) -> None:
        self.recent.append(one)
        key = one.instance, one.way
        sums = self.sums.setdefault(key, Sums())
        sums.seconds += one.seconds
        sums.joules += one.joules or 0.0
        if one.outcome != "done":
            sums.failed += 1
            return
        sums.done += 1
        seconds, joules = self.usual.get(key, (one.seconds, one.joules))
        if joules is not None and one.joules is not None:
            joules += LEARN * (one.joules - joules)
        self.usual[key] = seconds + LEARN * (one.seconds - seconds), joules
