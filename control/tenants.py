"""Pure: who shares a pool's engines, and who asks for far more of them than the others.

Theory of operation. What is shared are places in the engines, so what a tenant asks for are its requests in
flight and those that wait. A tenant that asks, now or on average of late, for more than twice what the others
ask for on average, and one, is *heavy*: it goes after them. But not where the others ask for as much now: an
average is late to see that one of them began to ask for more. Being first does not help where every place is
taken for as long as an answer lasts, so heavy tenants also leave places free. Requests that come by chance
and stay for a while are Poisson distributed in number, so hardly one in a hundred of the others' finds no
place (averages are not exact) where `mean + 3 sqrt(mean)` and one are theirs; but heavy tenants are never
left less than their equal share. A pool with one tenant knows no difference.

Averages, and who is heavy no more, are worked out ten times a second; who becomes heavy is seen at once. Both
when a request arrives: to be asked changes nothing.
"""

from math import ceil, exp, sqrt

from joulegate.units import Seconds

MEMORY = Seconds(60.0)  # a tenant not seen for so long is no longer considered
AVERAGED = Seconds(10.0)  # over which what a tenant asks for is averaged
LOOK = Seconds(0.1)  # between two looks at all of them
MAX_TENANTS = 1000
HEAVY = 2.0  # times the mean of the others, and one request
RARE = 3.0  # standard deviations above the mean that are kept for the others


class Tenants:
    """Requests in flight and waiting in one pool, by tenant, and who was seen lately."""

    __slots__ = (
        "_asked",
        "_asking",
        "_at",
        "_began",
        "_mean",
        "_running",
        "_seen",
        "_sum",
        "_theirs",
        "changes",
        "heavies",
        "total",
    )

    def __init__(self) -> None:
        self.total = 0  # in flight
        self.heavies: set[str] = set()
        self.changes = 0  # of who is heavy
        self._running: dict[str, int] = {}
        self._asked: dict[str, int] = {}  # in flight and waiting
        self._asking = 0  # of all
        self._seen: dict[str, Seconds] = {}  # last seen last
        self._began: dict[str, Seconds] = {}  # first seen, of those seen
        self._mean: dict[str, float] = {}  # asked for of late, of those seen
        self._sum = 0.0  # of all means
        self._theirs = 0.0  # sum of the means of those who are not heavy
        self._at = Seconds(float("-inf"))

    def arrived(self, tenant: str, now: Seconds) -> None:
        seen = self._seen
        seen.pop(tenant, None)
        seen[tenant] = now
        if tenant not in self._mean:
            self._mean[tenant], self._began[tenant] = 0.0, now
        oldest = next(iter(seen))
        if len(seen) > MAX_TENANTS or now - seen[oldest] > MEMORY:
            del seen[oldest], self._began[oldest]
            self._sum -= self._mean.pop(oldest)
        if now - self._at >= LOOK:
            self._look(now)
        if tenant not in self.heavies and self._is_much(tenant, self._asked.get(tenant, 0) + 1):
            self.heavies.add(tenant)
            self.changes += 1
            self._theirs = max(0.0, self._theirs - self._mean[tenant])

    def waits(self, tenant: str) -> None:
        self._asking += 1
        self._asked[tenant] = self._asked.get(tenant, 0) + 1

    def waits_no_more(self, tenant: str) -> None:
        self._asking -= 1
        _less(self._asked, tenant)

    def sent(self, tenant: str) -> None:
        self.total += 1
        self._asking += 1
        self._running[tenant] = self._running.get(tenant, 0) + 1
        self._asked[tenant] = self._asked.get(tenant, 0) + 1

    def closed(self, tenant: str) -> None:
        self.total -= 1
        self._asking -= 1
        _less(self._running, tenant)
        _less(self._asked, tenant)

    def running(self, tenant: str) -> int:
        return self._running.get(tenant, 0)

    def heavy(self, tenant: str) -> bool:
        return tenant in self.heavies

    def reserve(self, slots: int) -> int:
        """Of `slots`, how many heavy tenants leave free for the others."""
        own = ceil(slots * len(self.heavies) / max(1, len(self._seen)))
        needed = ceil(self._theirs + RARE * sqrt(self._theirs)) + 1
        others = self.total - sum(self._running.get(tenant, 0) for tenant in self.heavies)
        return min(slots - own, needed) - others

    def _is_much(self, tenant: str, asked: float) -> bool:
        others = len(self._mean) - 1
        if others <= 0 or asked <= HEAVY * (self._sum - self._mean[tenant]) / others + 1.0:
            return False
        return asked > (self._asking - self._asked.get(tenant, 0)) / others

    def _look(self, now: Seconds) -> None:
        since, self._at = now - self._at, now
        means, asked = self._mean, self._asked
        for tenant, mean in means.items():
            part = 1.0 - exp(-since / min(AVERAGED, now - self._began[tenant] + LOOK))
            means[tenant] = mean + part * (asked.get(tenant, 0) - mean)
        self._sum = sum(means.values())
        heavies = {
            tenant for tenant, mean in means.items() if self._is_much(tenant, max(mean, asked.get(tenant, 0)))
        }
        self._theirs = max(0.0, self._sum - sum(means[tenant] for tenant in heavies))
        if heavies != self.heavies:
            self.heavies = heavies
            self.changes += 1


def _less(counts: dict[str, int], tenant: str) -> None:
    left = counts.pop(tenant) - 1
    if left:
        counts[tenant] = left
