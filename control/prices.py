"""Pure: what delay must cost, learned from objectives kept and missed: the highest price any asks for.

Theory of operation. The floor of the load (`control.floor`) trades watts against requests in the system at
a price. A constant safety margin cannot be right for every engine, model and traffic, so the price is
learned. Every objective has its own, in logarithm, and moves with each request that ends:

* a share objective (1 % of first tokens of a size may be late; the share in time, of requests and with E2E
  objectives of output tokens too, may fall `attainment` below that at maximum clock) is a stochastic
  approximation: down a little with each request, up with each miss, so that it rests where misses come at
  the rate allowed;
* the slowdown objective moves with the ratio of median E2E here to that of the twin (`control.twin`) over the
  last `WINDOW` requests, up faster than down, and up where the last `LATELY` are `GRACE` beyond it: a load
  that has changed would be noticed over the former when it is gone.

Misses come in bursts, minutes apart, and energy is convex in the price: many small steps around one level
cost less than a jump after each burst and a long way back. So steps are small, and what makes up for them is
`credit`: misses allowed and not made, over the last `memory` requests. With credit a price falls faster;
without, it falls only as fast as one that rests. At the start all of it is there, so the first descent is
quick and the first burst ends it. Where more requests missed than may, a price is slow to help: hundreds more
must end until it has risen. So while any objective is without credit `control.steering` also has prompts read
as fast as maximum clock would, where somebody who comes meanwhile would be late at any lower clock.

What maximum clock would have missed too is not our doing. Where the twin's own 99th percentile of late is
over the objective, ours may be over it by as much again, a tenth (`LEEWAY`) at most; what is later counts,
and only if the twin was not as late. Where the twin uses up part of the 1 % itself, that much less is
allowed: next to nothing where its 99th percentile is just within the objective. Attainment counts the
difference. What the twin misses and we do not lowers a price, but is no credit for later: an hour's crowd
would excuse the calm after it. Counting all misses would drive the clock to its maximum exactly when that
does not help (reference: control laws).

Missing input: a request without first token or twin teaches nothing; with nothing learned the price stays at
`start`, and before a start is known there is no price and `control.governor` keeps maximum clock.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log

from control.state import Flight
from control.twin import Twinned
from joulegate.domain import Objectives

WINDOW = 1000  # requests over which medians and lengths are taken
RECENT = 150  # requests judged together over which the twin's P99 is taken: what cannot be helped now
LATELY = 300  # requests over which a slowdown is noticed soon
GRACE = 1.1  # times the slowdown allowed over these
SHORT = 0.05  # share of answers that are shorter than `short_output`
TAIL = 0.01  # share of requests that a P99 leaves out
LEEWAY = 0.1  # of the twin's P99: how much later ours may be where maximum clock misses the objective
LEAST_SHARE = 0.1  # of all requests: rarer kinds are weighed as if they were this frequent
LEAST_BUDGET = 0.1  # of `late`: what is left where the twin uses up the whole tail


@dataclass(frozen=True, slots=True)
class PriceRules:
    """Gains and budgets."""

    gain: float = 0.05  # of the logarithm, for one miss among requests that all count
    late: float = 0.005  # share of first tokens that may be late beyond the twin: half the 1 % of a P99
    attainment: float = 0.0015  # share of requests that may miss beyond the twin's misses
    memory: float = 1500.0  # requests over which misses made and allowed are set off against each other
    haste: float = 3.0  # a price with full credit falls so many times faster, in addition
    slowdown_gain: float = 0.005
    slowdown_haste: float = 0.02  # upwards: a promise is broken sooner than energy is lost
    slowdown_margin: float = 0.02
    lowest: float = 0.01  # of the starting price: below it batches grow until bursts cost more than was saved
    highest: float = 5.0  # misses come in bursts; a price beyond this is maximum clock for most loads
    highest_slowdown: float = 1e4


class Percentile:
    """A percentile over the last `window` values."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        insort(self._sorted, value)
        self._order.append(value)
        if len(self._order) > self._window:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def __len__(self) -> int:
        return len(self._order)

    def beyond(self, value: float) -> float:
        """Share of the values above `value`; 0.0 while empty."""
        return 1.0 - bisect_right(self._sorted, value) / len(self._sorted) if self._sorted else 0.0

    def at(self, p: float) -> float:
        """0.0 while empty."""
        if not self._sorted:
            return 0.0
        return self._sorted[min(len(self._sorted) - 1, int(p * len(self._sorted)))]


class Ratio:
    """Median here over median there, of the last `window` requests."""

    __slots__ = ("_here", "_there")

    def __init__(self, window: int) -> None:
        self._here, self._there = Percentile(window), Percentile(window)

    def add(self, here: float, there: float) -> None:
        self._here.add(here)
        self._there.add(there)

    def __len__(self) -> int:
        return len(self._here)

    @property
    def value(self) -> float:
        """1.0 while unknown."""
        there = self._there.at(0.5)
        return self._here.at(0.5) / there if there > 0.0 else 1.0


class _Share:
    """The price of one share objective: it rests where misses come at the rate allowed."""

    __slots__ = ("_bottom", "_fall", "_rules", "_top", "credit", "level")

    def __init__(self, rules: PriceRules) -> None:
        self._rules = rules
        self._bottom, self._top = log(rules.lowest), log(rules.highest)
        self._fall = rules.gain * rules.late
        self.level = 0.0  # logarithm of the price, relative to the start
        self.credit = 1.0  # misses allowed and not made in `memory`, as a share of those allowed

    def miss(self, more: float, step: float, budget: float) -> None:
        """`more` misses than the twin; `step` of the logarithm each, `budget` of all requests allowed."""
        self.credit = min(1.0, self.credit - more / (self._rules.memory * budget))
        self._set(self.level + step * more)

    @property
    def over(self) -> float:
        """How far the level is above its bound: 0.0 at it, else negative."""
        return self.level - self._top

    def settle(self, allowed: float) -> None:
        """A request ended: down by what balances misses at the rate allowed (1.0: the whole budget)."""
        rules = self._rules
        self.credit = credit = self.credit + (1.0 - self.credit) / rules.memory
        haste = 1.0 + rules.haste * credit if credit > 0.0 else 1.0
        self._set(self.level - self._fall * allowed * haste)

    def _set(self, level: float) -> None:
        """Within the bounds."""
        self.level = level if self._bottom < level < self._top else min(self._top, max(self._bottom, level))


class _Late(_Share):
    """Requests whose lateness is judged together: first tokens of one input size, or TPOT, or E2E."""

    __slots__ = ("allowed", "seen", "twin")

    def __init__(self, rules: PriceRules) -> None:
        super().__init__(rules)
        self.twin = Percentile(RECENT)
        self.seen = 0
        self.allowed = 1.0  # share of the budget that the twin leaves

    def judge(self, here: float, there: float, requests: int) -> None:
        """One more of them, among `requests` of all kinds; latencies as shares of the objective."""
        rules = self._rules
        self.seen += 1
        self.twin.add(there)
        best = self.twin.at(1.0 - TAIL)
        limit = max(1.0, best + min(best - 1.0, LEEWAY * best))
        self.allowed = max(LEAST_BUDGET, 1.0 - self.twin.beyond(limit) / TAIL)
        more = float(here > limit) - float(there > limit)
        if more:
            share = max(LEAST_SHARE, self.seen / requests)
            self.miss(more, rules.gain / share, rules.late * self.allowed * share)


class Prices:
    """One pool's prices. `observe` every request that ended; read `price`."""

    def __init__(self, rules: PriceRules, objectives: Objectives) -> None:
        self._rules = rules
        self._objectives = objectives
        self._late: dict[str, _Late] = {}
        self._attainment = _Share(rules)
        self._tokens = _Share(rules)  # the same of output tokens, where being late goes with being long
        self._slowdown = 0.0
        self._outputs = Percentile()
        self._mean_output = 0.0
        self._long, self._lately = Ratio(WINDOW), Ratio(LATELY)
        self._seen = 0
        self.start: float | None = None  # watts per request in the system; set once from the first load seen

    @property
    def price(self) -> float:
        """Watts per request in the system; 0 until a start is known."""
        return 0.0 if self.start is None else self.start * exp(self.level)

    @property
    def level(self) -> float:
        """Logarithm of the price over its start: the highest that any objective asks for."""
        highest = max(share.level for share in self._shares())
        return highest if self._objectives.max_slowdown is None else max(highest, self._slowdown)

    @property
    def bound_ratio(self) -> float:
        """The price over the most it may be: at 1.0 it cannot rise whatever is missed; 0.0 while unknown."""
        if self.start is None:
            return 0.0
        over = max(share.over for share in self._shares())
        if self._objectives.max_slowdown is not None:
            over = max(over, self._slowdown - log(self._rules.highest_slowdown))
        return exp(over)

    @property
    def credit(self) -> float:
        """Requests that may miss beyond the twin's and did not, of those that may; below 0: more did.

        Of the objective where that is least.
        """
        return min(share.credit for share in self._shares())

    @property
    def slowdown(self) -> float:
        """Median E2E here over that of the twin, where `max_slowdown` is promised; 1.0 while unknown."""
        return self._long.value

    @property
    def short_output(self) -> float:
        """Output tokens that all but `SHORT` of the answers exceed; 0.0 before any ended."""
        return self._outputs.at(SHORT)

    def _shares(self) -> Iterator[_Share]:
        yield from self._late.values()
        yield self._attainment
        if self._objectives.e2e is not None:
            yield self._tokens

    def observe(self, twinned: Twinned) -> None:
        """A request ended here and in the twin."""
        flight = twinned.flight
        if flight.first_token is None or flight.last_token is None:
            return
        self._seen += 1
        self._outputs.add(flight.tokens_out)
        self._mean_output += (flight.tokens_out - self._mean_output) / min(self._seen, WINDOW)
        missed, twin_missed = False, False
        for name, here, there in _ratios(flight, twinned):
            late = self._late.get(name)
            if late is None:
                late = self._late[name] = _Late(self._rules)
            late.judge(here, there, self._seen)
            missed, twin_missed = missed or here > 1.0, twin_missed or there > 1.0
        self._settle(float(missed) - float(twin_missed), flight.tokens_out / max(1.0, self._mean_output))
        if self._objectives.max_slowdown is not None:
            self._compare(flight.last_token - flight.arrived, twinned.e2e, self._objectives.max_slowdown)

    def _settle(self, more: float, weight: float) -> None:
        """Every price falls a little with each request; attainment moves with misses beyond the twin's."""
        rules = self._rules
        for late in self._late.values():
            late.settle(late.allowed)
        step = rules.gain * rules.late / rules.attainment
        for share, misses in ((self._attainment, more), (self._tokens, weight * more)):
            share.settle(1.0)
            if misses:
                share.miss(misses, step, rules.attainment)

    def _compare(self, here: float, there: float, limit: float) -> None:
        rules = self._rules
        self._long.add(here, there)
        self._lately.add(here, there)
        if len(self._long) >= 50:
            aim = limit - rules.slowdown_margin
            excess, burst = self._long.value / aim - 1.0, self._lately.value / (GRACE * aim) - 1.0
            haste = rules.slowdown_haste if excess > 0.0 else rules.slowdown_gain
            step = max(haste, 0.05 / (1.0 + self._seen / 200.0)) * excess
            level = self._slowdown + step + rules.slowdown_haste * max(0.0, burst)
            self._slowdown = min(log(rules.highest_slowdown), max(log(rules.lowest), level))


def _ratios(flight: Flight, twinned: Twinned) -> list[tuple[str, float, float]]:
    """(objective, share of it used here, share the twin used), for each objective of the request."""
    assert flight.first_token is not None
    assert flight.last_token is not None
    rows = []
    if flight.ttft < float("inf"):
        ttft = flight.first_token - flight.arrived
        rows.append((f"ttft_{flight.type.input.name}", ttft / flight.ttft, twinned.ttft / flight.ttft))
    steps = flight.tokens_out - 1.0
    if steps >= 1.0:
        here = (flight.last_token - flight.first_token) / steps
        there = (twinned.e2e - twinned.ttft) / steps
        rows.append(("tpot", here / flight.tpot, there / flight.tpot))
    if flight.e2e is not None:
        rows.append(("e2e", (flight.last_token - flight.arrived) / flight.e2e, twinned.e2e / flight.e2e))
    return rows
