"""Pure: what delay must cost, learned from objectives kept and missed: the highest price any asks for.

Theory of operation. The floor of the load (`control.floor`) trades watts against requests in the system at
a price. A constant safety margin cannot be right for every engine, model and traffic, so the price is
learned. Every objective has its own, in logarithm, and moves with each request that ends:

* a share objective (1 % of first tokens of a size may be late; the share in time may fall `attainment`
below that at
  maximum clock) is a stochastic approximation: down a little with each request, up with each miss, so that
  it rests where misses come at the rate allowed;
* the slowdown objective moves with the ratio of median E2E here to that of the twin (`control.twin`).

What maximum clock would have missed too is not counted: a late first token counts only beyond `grace` times
what the twin's 99th percentile is, and attainment counts the difference. Counting all misses would drive
the clock to its maximum exactly when that does not help (reference: control laws).
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from math import exp, log

from control.state import Flight
from control.twin import Twinned
from joulegate.domain import Objectives

WINDOW = 1000  # requests over which percentiles of the twin are taken


@dataclass(frozen=True, slots=True)
class PriceRules:
    """Gains and budgets."""

    gain: float = 0.15  # of the logarithm, for one miss among requests that all count
    late: float = 0.006  # share of first tokens that may be late beyond the twin: under the 1 % of a P99
    attainment: float = 0.002  # share of requests that may miss beyond the twin's misses
    grace: float = 1.15
    slowdown_gain: float = 0.005
    slowdown_margin: float = 0.02
    lowest: float = 0.03  # of the starting price: below it batches grow until bursts cost more than was saved
    highest: float = 10.0  # misses come in bursts; a price beyond this is maximum clock for most loads
    highest_slowdown: float = 1e4


class Percentile:
    """A percentile over the last `WINDOW` values."""

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        insort(self._sorted, value)
        self._order.append(value)
        if len(self._order) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def __len__(self) -> int:
        return len(self._order)

    def at(self, p: float) -> float:
        """0.0 while empty."""
        if not self._sorted:
            return 0.0
        return self._sorted[min(len(self._sorted) - 1, int(p * len(self._sorted)))]


@dataclass(slots=True, eq=False)
class _Late:
    """Requests whose lateness is judged together: first tokens of one input size, or TPOT, or E2E."""

    twin: Percentile = field(default_factory=Percentile)
    seen: int = 0
    level: float = 0.0  # logarithm of the price, relative to the start


class Prices:
    """One pool's prices. `observe` every request that ended; read `price`."""

    def __init__(self, rules: PriceRules, objectives: Objectives) -> None:
        self._rules = rules
        self._objectives = objectives
        self._late: dict[str, _Late] = {}
        self._attainment = 0.0
        self._slowdown = 0.0
        self._here = Percentile()
        self._there = Percentile()
        self._seen = 0
        self.start: float | None = None  # watts per request in the system; set once from the first load seen

    @property
    def price(self) -> float:
        """Watts per request in the system; 0 until a start is known."""
        return 0.0 if self.start is None else self.start * exp(self.level)

    @property
    def level(self) -> float:
        levels = [late.level for late in self._late.values()]
        levels.append(self._attainment)
        if self._objectives.max_slowdown is not None:
            levels.append(self._slowdown)
        return max(levels)

    @property
    def slowdown(self) -> float:
        """Median E2E here over that of the twin; 1.0 while unknown."""
        there = self._there.at(0.5)
        return self._here.at(0.5) / there if there > 0.0 else 1.0

    def observe(self, twinned: Twinned) -> None:
        """A request ended here and in the twin."""
        flight = twinned.flight
        if flight.first_token is None or flight.last_token is None:
            return
        self._seen += 1
        missed, twin_missed = False, False
        for name, here, there in _ratios(flight, twinned):
            self._judge(name, here, there)
            missed, twin_missed = missed or here > 1.0, twin_missed or there > 1.0
        self._settle(missed, twin_missed)
        self._compare(flight.last_token - flight.arrived, twinned.e2e)

    def _judge(self, name: str, here: float, there: float) -> None:
        late = self._late.setdefault(name, _Late())
        late.seen += 1
        late.twin.add(there)
        if here > max(1.0, 0.5 + 0.5 * self._rules.grace * late.twin.at(0.99)):
            late.level += self._rules.gain / max(0.1, late.seen / self._seen)

    def _settle(self, missed: bool, twin_missed: bool) -> None:
        """Every price falls a little with each request; attainment moves with the difference."""
        rules = self._rules
        fall = rules.gain * rules.late
        for late in self._late.values():
            late.level = self._clamped(late.level - fall)
        difference = float(missed) - float(twin_missed)
        self._attainment = self._clamped(self._attainment - fall + fall / rules.attainment * difference)

    def _compare(self, here: float, there: float) -> None:
        self._here.add(here)
        self._there.add(there)
        limit = self._objectives.max_slowdown
        if limit is not None and len(self._here) >= 50:
            excess = self.slowdown / (limit - self._rules.slowdown_margin) - 1.0
            gain = max(self._rules.slowdown_gain, 0.05 / (1.0 + self._seen / 200.0))
            level = self._slowdown + gain * excess
            self._slowdown = self._clamped(level, self._rules.highest_slowdown)

    def _clamped(self, level: float, highest: float = 0.0) -> float:
        return min(log(highest or self._rules.highest), max(log(self._rules.lowest), level))


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
