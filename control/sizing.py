"""Pure: how many instances of a pool should run: the law that gateway and simulator call.

Theory of operation (papers §1.4, §2.7). Every `LOOK` seconds a pool's load of that moment is held against
what its instances carry at *maximum* clock (`control.planner.carries`). There must be enough for what the
load may become until an instance that is started now serves (`Growth`): that decides the fewest. Among the
fewest and the few above them the count that draws the least watts at the load *as it is* wins, each instance
at the cheapest clock of its share: clocks follow the load, so the watts of a rare peak count for little.

More at once. Fewer only after fewer have been enough for `calm` seconds, and only if what stopping saves
within `PAID_BACK` is more than starting again costs. In between, requests that are there and need more are
reason enough (`present`). Instances are started in the order of the stock.

Missing input: before `KNOWN` seconds of arrivals none is stopped; without a latency model what runs goes on.
No arrivals at all: the fewest that stay warm. Stale input: the load fades by itself while nothing comes.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from control.floor import Demand
from control.planner import PlanRules, Stock, carries, watts_at
from control.turnout import Calm
from joulegate.units import Seconds, Watts

LOOK = Seconds(10.0)  # between two looks at the load (papers §2.7)
KNOWN = Seconds(30.0)  # of arrivals, until their rate is believed
FIRST = 1.5  # growth that is taken for granted before much was seen
SEEN = 20  # looks after which FIRST counts no more
MEMORY = 360  # looks: a burst of this hour may come again
PAID_BACK = Seconds(300.0)  # time within which a stop must save what a start costs
LITTLE = 0.2  # of an instance: from less, growth means nothing
BIAS = (0.5, 3.0)  # how far the lengths that came may be from those predicted, ratio
STEPS = 8  # between the fewest and half as many more, in larger fleets


class Growth:
    """What a load may become until an instance that is started now serves. Learned from the past.

    The highest load within the time that a start takes, over the highest of as much time before: a
    conversation grows by a tenth, a burst of code doubles. Against the *highest*, because against the load of
    one moment every dip looks like growth to come. A burst is in sight of as many looks as a start takes, so
    that many of the last hour's are passed over less one: what one whole burst was like is planned for.
    Before much was seen it is taken to be `FIRST`.
    """

    def __init__(self) -> None:
        self._loads: deque[float] = deque(maxlen=MEMORY)
        self._grown: deque[float] = deque(maxlen=MEMORY)
        self._ahead = 1  # looks

    def see(self, load: float, start: Seconds) -> None:
        """The load of this look, in instances, of which one takes `start` to serve."""
        self._ahead = min(MEMORY // 2, ceil(start / LOOK) + 3)  # rates are means over a quarter of a minute
        self._loads.append(load)
        if len(self._loads) >= 2 * self._ahead:
            *before, since = self._windows(2)
            self._grown.append(max(since) / max(LITTLE, *before[0]))

    def restart(self) -> None:
        """Loads from now on are not held against those before; what growth was like is still known."""
        self._loads.clear()

    @property
    def ratio(self) -> float:
        seen = sorted([*self._grown, *[FIRST] * max(0, SEEN - len(self._grown))], reverse=True)
        return seen[min(len(seen), self._ahead) - 1]

    @property
    def expected(self) -> float:
        """Instances; never fewer than the load of the last look. 0 before one."""
        if not self._loads:
            return 0.0
        [recent] = self._windows(1)
        return max(self._loads[-1], self.ratio * max(recent))

    def _windows(self, count: int) -> Iterator[list[float]]:
        """The last `count` times as many looks as a start takes, oldest first."""
        loads = list(self._loads)[-count * self._ahead :]
        return (loads[i : i + self._ahead] for i in range(0, len(loads), self._ahead))


@dataclass(frozen=True, slots=True)
class Seen:
    """What comes to a pool."""

    load: Demand | None  # at this moment, lengths as predicted; None: nothing ever came
    age: Seconds  # since the first request
    bias: float  # output tokens that came over those predicted
    ahead: float | None = None  # requests per second until one more serves, for whom that is known


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pool promises and what delay costs it: watts per request in the system."""

    tpot: Seconds
    price: float = 0.0
    rules: PlanRules = field(default_factory=PlanRules)


class Loaded:
    """A stock under a load: what each kind carries of it and what so many draw, each worked out once."""

    def __init__(self, stock: Sequence[Stock], demand: Demand, terms: Terms) -> None:
        self.stock = stock
        self.demand = demand
        self.rates = [carries(each.kind, demand, terms.tpot, terms.rules) for each in stock]
        self._terms = terms
        self._watts: dict[int, Watts] = {}

    def watts(self, count: int) -> Watts:
        """Of `count` instances, above what they would draw stopped."""
        if count not in self._watts:
            self._watts[count] = self._drawn(count)
        return self._watts[count]

    def fewest(self, expected: float) -> int:
        """That carry `expected` requests/s: at least one, at most all."""
        count, left = 0, expected
        for each, rate in zip(self.stock, self.rates, strict=True):
            needed = ceil(left / rate - 1e-9) if rate > 0.0 else each.have
            count += min(each.have, max(0, needed))
            left -= each.have * rate
            if left <= 0.0:
                break
        return max(1, count)

    def _drawn(self, count: int) -> Watts:
        demand, terms, taken, before = self.demand, self._terms, list[int](), 0
        for each in self.stock:
            taken.append(min(each.have, max(0, count - before)))
            before += each.have
        carried = sum(n * rate for n, rate in zip(taken, self.rates, strict=True))
        total = 0.0
        for each, n, rate in zip(self.stock, taken, self.rates, strict=True):
            if n:
                part = demand.rate * rate / carried if carried > 0.0 else demand.rate / count
                watts = watts_at(each.kind, replace(demand, rate=part), terms.price, terms.rules)
                total += n * each.kind.tp * (watts - each.stopped_watts)
        return Watts(total)


def best_count(loaded: Loaded, expected: float) -> int:
    """The count with the least watts at the load among those that carry `expected` requests/s.

    All of them where that is not enough.
    """
    have = sum(each.have for each in loaded.stock)
    fewest = loaded.fewest(expected)
    if fewest >= have:
        return have
    step, most = max(1, fewest // (2 * STEPS)), min(have, fewest + max(2, ceil(0.5 * fewest)))
    best = fewest
    for count in range(fewest + step, most + 1, step):  # watts fall, then rise with the count
        if loaded.watts(count) >= loaded.watts(best):
            break
        best = count
    return best


def pays(loaded: Loaded, up: int, fewer: int, within: Seconds) -> bool:
    """Whether stopping saves more within that time than starting again will cost."""
    dearest = max(each.start_joules + each.stop_joules for each in loaded.stock)
    return (loaded.watts(up) - loaded.watts(fewer)) * within > (up - fewer) * dearest


def length_bias(pairs: Collection[tuple[float, float]]) -> float:
    """Output tokens that came over those predicted, of requests that ended: (came, predicted)."""
    came, predicted = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    return min(BIAS[1], max(BIAS[0], came / predicted)) if predicted > 0.0 else 1.0


class Sizing:
    """The count of one pool. `look` every LOOK seconds, `count` as often as somebody may be waiting."""

    def __init__(self, calm: Seconds, growth: Growth | None = None) -> None:
        self.growth = growth or Growth()
        self.sentence = ""
        self._calm = calm
        self._counts = Calm(calm)
        self._began: Seconds | None = None
        self._asked: int | None = None
        self._look_at = float("-inf")
        self._known_at = float("-inf")  # from when on the rate of what comes to it now is believed

    def due(self, now: Seconds) -> bool:
        """Whether it is time for another look."""
        return now >= self._look_at

    def look(self, stock: Sequence[Stock], seen: Seen, up: int, terms: Terms, now: Seconds) -> None:
        """`up`: instances that run or are being started."""
        self._look_at = now + LOOK
        load = seen.load
        if load is None or 2.0 * load.rate * max(self._calm, LOOK) < 1.0:
            self._asked, self.sentence = 0, "nothing comes"
            return
        demand = replace(load, output_tokens=max(1.0, seen.bias * load.output_tokens))
        loaded = Loaded(stock, demand, terms)
        one = loaded.rates[0]
        if one <= 0.0:
            self._asked, self.sentence = None, "not one such request is carried within its objectives"
            return
        known = seen.age >= KNOWN and now >= self._known_at
        if known:
            self.growth.see(demand.rate / one, stock[0].kind.start)
        expected = max(demand.rate, self.growth.expected * one if seen.ahead is None else seen.ahead)
        asked = best_count(loaded, expected)
        self.sentence = f"{asked} for {demand.rate:.3g} requests/s, and {expected:.3g} until one more serves"
        if asked < up and not (known and pays(loaded, up, asked, PAID_BACK)):
            self.sentence += f"; {up} go on: {'stopping would not pay' if known else 'seen for too short'}"
            asked = up
        self._asked = asked

    def restart(self, now: Seconds) -> None:
        """Requests of other types come to this pool from now on, or no longer: that is no growth."""
        self.growth.restart()
        self._known_at = now + KNOWN

    def unknown(self, now: Seconds) -> None:
        """What an instance carries is not known: what runs goes on."""
        self._look_at, self._asked, self.sentence = now + LOOK, None, "no latency model yet"

    def count(self, up: int, present: int, now: Seconds) -> int:
        """How many should run. `present`: what requests that are there need, and what stays warm.

        None stops before the load has been watched for as long as fewer must be enough.
        """
        began = self._began = now if self._began is None else self._began
        asked = self._counts.settle(max(present, up if self._asked is None else self._asked), now)
        return asked if now - began > self._calm else max(asked, up)


def best_kind(stocks: Sequence[Stock], demand: Demand, terms: Terms) -> tuple[Stock, int] | None:
    """The kind that carries a load alone with the least watts, and its count; None if none can."""
    found = []
    for each in stocks:
        loaded = Loaded((each,), demand, terms)
        if loaded.rates[0] * each.have >= demand.rate > 0.0:
            count = best_count(loaded, demand.rate)
            found.append((loaded.watts(count), each, count))
    if not found:
        return None
    _, stock, count = min(found, key=lambda one: one[0])
    return stock, count
