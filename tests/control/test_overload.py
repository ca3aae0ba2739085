"""Three times the load a pool can carry, and a tenant that sends ten times another's; in simulated time."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from control.admission import AdmissionRules, Outcome
from control.governor import GovernorRules
from control.state import Flight, Instance, Limits, LoadBook, PoolRules
from control.steering import Steering
from joulegate.domain import Objectives, RequestType, Size
from joulegate.units import Seconds

EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)
TTFT = 0.25
PREFILL, SERVICE = 0.02, 0.3  # seconds to the first token, and in all on average
INSTANCES, SLOTS = 2, 8
CAPACITY = INSTANCES * SLOTS / SERVICE  # requests a second


@dataclass
class Pool:
    """Engines whose requests take 0.1 to 0.5 s."""

    shed: bool = True
    now: float = 0.0
    firsts: list[tuple[float, str, float]] = field(default_factory=list)  # (arrived, tenant, TTFT)
    refused: list[tuple[float, float]] = field(default_factory=list)  # (arrived, seconds until told)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _serial: int = 0
    _lengths: random.Random = field(default_factory=lambda: random.Random(5))

    def __post_init__(self) -> None:
        objectives = Objectives((Seconds(TTFT),) * 3, Seconds(0.1), None, None)
        rules = PoolRules("all", objectives, EVERY, self.shed)
        self.instances = [
            Instance(f"i{n}", "all", LoadBook(), Limits(), None, slots=SLOTS, prompt_window=1e9)
            for n in range(INSTANCES)
        ]
        rng = random.Random(2).randrange
        self.steering = Steering([rules], self.instances, AdmissionRules(), GovernorRules(), rng)

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what))

    def offer(self, tenant: str, rate: float, start: float, end: float, seed: int, session: str = "") -> None:
        rng, when = random.Random(seed), start
        while (when := when + rng.expovariate(rate)) < end:
            self.at(when, lambda when=when: self._arrive(tenant, when, session))  # type: ignore[misc]

    def run(self) -> None:
        while self._events:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def good(self, start: float, end: float, tenant: str = "") -> float:
        """Requests a second that were in time, of those that arrived in between."""
        mine = [f for t, who, f in self.firsts if start <= t < end and who.startswith(tenant)]
        return sum(first <= TTFT for first in mine) / (end - start)

    def _arrive(self, tenant: str, when: float, session: str) -> None:
        self._serial += 1
        kind, now = RequestType(Size.S, Size.S), Seconds(when)
        ttft, tpot = Seconds(TTFT), Seconds(0.1)
        flight = Flight(f"{self._serial}", kind, 100, 100, 40.0, 60.0, now, ttft, tpot, tenant=tenant)
        flight.session = session
        self._told(self.steering.arrive(flight, "all", now))
        self.at(when + 0.25, self._look)  # the tick

    def _look(self) -> None:
        self._told(self.steering.assign(Seconds(self.now)))

    def _told(self, outcome: Outcome) -> None:
        for reject in outcome.rejects:
            self.refused.append((reject.flight.arrived, self.now - reject.flight.arrived))
            assert reject.retry_after >= 1.0
        for grant in outcome.grants:
            self.at(self.now + PREFILL, lambda g=grant: self._first(g.flight, g.instance))  # type: ignore[misc]
            took = self._lengths.uniform(SERVICE - 0.2, SERVICE + 0.2)
            self.at(self.now + took, lambda g=grant: self._end(g.flight, g.instance))  # type: ignore[misc]

    def _first(self, flight: Flight, instance: Instance) -> None:
        instance.book.progress(flight, 1.0, Seconds(self.now))
        self.firsts.append((flight.arrived, flight.tenant, self.now - flight.arrived))
        self._look()

    def _end(self, flight: Flight, instance: Instance) -> None:
        instance.book.close(flight)
        self._look()


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[int(q * (len(values) - 1))]


def test_at_three_times_the_load_goodput_stays_and_refusals_come_at_once() -> None:
    pool = Pool()
    pool.offer("a", 0.95 * CAPACITY, 0.0, 30.0, 1)
    pool.offer("a", 3.0 * CAPACITY, 40.0, 70.0, 2)
    pool.offer("a", 0.7 * CAPACITY, 70.0, 90.0, 3)
    pool.run()
    peak = pool.good(0.0, 30.0)
    assert pool.good(40.0, 70.0) >= 0.9 * peak
    told = [after for arrived, after in pool.refused if 41.0 <= arrived < 70.0]
    assert len(told) > CAPACITY * 29 * 1.5
    assert quantile(told, 0.95) <= 0.05
    late = [arrived for arrived, _, first in pool.firsts if arrived >= 75.0 and first > TTFT]
    assert not late
    again = [arrived for arrived, _ in pool.refused if arrived >= 75.0]
    assert len(again) <= 0.01 * 0.7 * CAPACITY * 15.0


@pytest.mark.parametrize("shed", [True, False])
def test_a_tenant_with_ten_times_the_load_does_not_push_another_back(shed: bool) -> None:
    """The pool is just as full in both runs; in one, one tenant fills it alone."""
    firsts = []
    for heavy in (1, 10):
        pool = Pool(shed=shed)
        pool.offer("light", 0.15 * CAPACITY, 0.0, 60.0, 1)
        for n in range(10):
            pool.offer(f"other-{n % (11 - heavy)}", 0.15 * CAPACITY, 0.0, 60.0, 2 + n)
        pool.run()
        mine = [first for arrived, who, first in pool.firsts if who == "light" and arrived > 5.0]
        assert len(mine) >= 0.5 * 0.15 * CAPACITY * 55
        firsts.append(quantile(mine, 0.99))
    assert firsts[1] <= 1.2 * firsts[0], firsts


@pytest.mark.parametrize("shed", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_tenant_with_ten_times_the_load_is_not_felt_by_one_that_asks_for_little(
    seed: int, shed: bool
) -> None:
    """One takes 0.15 of the pool, the other would take 1.5 of it."""
    firsts, heavy = [], 0.0
    for times in (1, 10):
        pool = Pool(shed=shed)
        pool.offer("light", 0.15 * CAPACITY, 0.0, 80.0, seed)
        pool.offer("heavy", 0.15 * times * CAPACITY, 0.0, 80.0, 100 + seed)
        pool.run()
        light = [first for arrived, who, first in pool.firsts if who == "light" and arrived > 5.0]
        assert len(light) == pytest.approx(0.15 * CAPACITY * 75, rel=0.15)  # none of them refused
        firsts.append(quantile(light, 0.99))
        heavy = sum(who == "heavy" and 5.0 < arrived < 80.0 for arrived, who, _ in pool.firsts) / 75
    assert firsts[1] <= 1.2 * firsts[0], firsts
    assert heavy >= 0.45 * CAPACITY, "what is kept for the light one is no more than half"


def test_a_session_at_home_does_not_pass_what_holds_its_tenant_back() -> None:
    pool = Pool()
    for instance in pool.instances:
        instance.sessions = {"s": 100}
    pool.offer("light", 0.15 * CAPACITY, 0.0, 20.0, 1)
    pool.offer("heavy", 1.5 * CAPACITY, 0.0, 20.0, 2, session="s")
    pool.run()
    light = [first for arrived, who, first in pool.firsts if who == "light" and arrived > 5.0]
    assert quantile(light, 0.99) <= 1.2 * PREFILL
