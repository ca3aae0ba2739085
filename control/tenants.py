"""Pure: who shares a pool's engines, and who has far more of them than the others.

Theory of operation. What is shared are places in the engines, so requests in flight are counted, not what
was granted before: who had an idle pool to himself owes nobody anything, and who begins to fill it is seen at
once. A tenant that has more than twice the mean of the others in flight, and one, is *heavy* until it has no
more than that mean: it goes after the others. Being first does not help where every place is taken for as
long as an answer lasts, so a heavy tenant also leaves some free: as many as the others together had in flight
at most of late, less what they have now, and one; never more than half of all. A pool with one tenant knows
no difference.
"""

from math import ceil, exp

from joulegate.units import Seconds

MEMORY = Seconds(10.0)  # a tenant not seen for so long is no longer considered
MAX_TENANTS = 1000
HEAVY = 2.0  # times the mean of the others, and one request


class Tenants:
    """Requests in flight in one pool, by tenant, and who was seen lately."""

    __slots__ = ("_at", "_heavy", "_most", "_running", "_seen", "total")

    def __init__(self) -> None:
        self.total = 0
        self._running: dict[str, int] = {}
        self._seen: dict[str, Seconds] = {}  # last seen last
        self._heavy: set[str] = set()
        self._most = 0.0  # in flight of those who are not heavy: the most, fading
        self._at = 0.0

    def arrived(self, tenant: str, now: Seconds) -> None:
        seen = self._seen
        seen.pop(tenant, None)
        seen[tenant] = now
        oldest = next(iter(seen))
        if len(seen) > MAX_TENANTS or now - seen[oldest] > MEMORY:
            del seen[oldest]
        self._look(now)

    def sent(self, tenant: str) -> None:
        self.total += 1
        self._running[tenant] = self._running.get(tenant, 0) + 1

    def closed(self, tenant: str) -> None:
        self.total -= 1
        left = self._running.pop(tenant) - 1
        if left:
            self._running[tenant] = left

    def running(self, tenant: str) -> int:
        return self._running.get(tenant, 0)

    def heavy(self, tenant: str) -> bool:
        """Whether it has much more in flight than the mean of the others who share the pool."""
        others = len(self._seen) - 1
        if others <= 0:
            return False
        mine = self._running.get(tenant, 0)
        mean = (self.total - mine) / others
        if mine > (mean if tenant in self._heavy else HEAVY * mean + 1.0):
            self._heavy.add(tenant)
            return True
        self._heavy.discard(tenant)
        return False

    def reserve(self, slots: int, now: Seconds) -> int:
        """Of `slots`, how many a heavy tenant leaves free for the others."""
        light = self._look(now)
        return min(slots // 2, ceil(self._most) + 1 - light)

    def _look(self, now: Seconds) -> int:
        """How many those who are not heavy have in flight; the most of late is remembered."""
        light = self.total - sum(self._running.get(tenant, 0) for tenant in self._heavy)
        self._most = max(float(light), self._most * exp(-max(0.0, now - self._at) / MEMORY))
        self._at = now
        return light
