"""Pure: does governing cost objectives? If so, the pool falls back to advice by itself for a while.

Only misses that a lower clock may have caused count: those of requests that were sent to an instance below
maximum clock. The limit is on their share of the last `window` requests, so one bad minute of a quiet pool is
not enough and a bad hour cannot hide behind a good day.
"""

from collections import deque
from dataclasses import dataclass, field

from joulegate.units import Seconds


@dataclass(frozen=True, slots=True)
class BurnRules:
    window: int = 200  # requests
    misses: float = 0.05  # share of them
    rest: Seconds = Seconds(300.0)  # without control, after a fall-back


@dataclass(slots=True, eq=False)
class Burn:
    rules: BurnRules = field(default_factory=BurnRules)
    resting_until: Seconds = Seconds(float("-inf"))
    _blamed: deque[bool] = field(default_factory=deque)
    _count: int = 0

    def add(self, met: bool, governed: bool, now: Seconds) -> bool:
        """One request is over. True if the pool should fall back now."""
        if now < self.resting_until:
            return False
        blamed = governed and not met
        self._blamed.append(blamed)
        self._count += blamed
        if len(self._blamed) > self.rules.window:
            self._count -= self._blamed.popleft()
        if len(self._blamed) < self.rules.window or self._count <= self.rules.misses * self.rules.window:
            return False
        self._blamed.clear()
        self._count = 0
        self.resting_until = Seconds(now + self.rules.rest)
        return True

    def rests(self, now: Seconds) -> bool:
        return now < self.resting_until
