"""Admission under any order of events: nobody is lost or granted twice, and the books return to zero."""

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from control.admission import AdmissionRules, Outcome, PoolQueue
from control.governor import GovernorRules
from control.state import Flight, Instance, Limits, LoadBook, PoolRules
from control.steering import Steering
from joulegate.domain import Batch, Objectives, RequestType, Size
from joulegate.units import MegaHertz, Seconds, Watts

AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
SMALL = frozenset({RequestType(Size.S, Size.S)})
EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)
RULES = AdmissionRules(max_queued=12)
CLOCKS = (MegaHertz(500), MegaHertz(1000))


class FlatModel:
    """1 ms and 0.1 ms a prompt token at 1,000 MHz, in proportion to the clock."""

    clocks = CLOCKS
    idle_watts = Watts(10.0)

    def iteration_time(self, batch: Batch, clock: MegaHertz) -> Seconds:
        return Seconds((1e-3 + 1e-4 * batch.prefill_tokens) * 1000 / clock)

    def watts(self, batch: Batch, clock: MegaHertz) -> Watts:
        return Watts(50.0 * clock / 1000)


class Machine(RuleBasedStateMachine):
    """Two pools, the small one spilling into the large one, which sheds; a request is always in one place."""

    flights = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.made = 0
        self.waiting: dict[str, Flight] = {}
        self.running: dict[str, tuple[Flight, Instance]] = {}
        self.ended: set[str] = set()
        pools = [PoolRules("small", AIMS, SMALL), PoolRules("large", AIMS, EVERY, shed=True)]
        self.instances = [self.instance(f"s{n}", "small", 2) for n in range(2)]
        self.instances.append(self.instance("l0", "large", 3))
        rng = random.Random(11).randrange
        self.steering = Steering(pools, self.instances, RULES, GovernorRules(), rng)

    def instance(self, name: str, pool: str, slots: int) -> Instance:
        return Instance(name, pool, LoadBook(), Limits(), FlatModel(), slots=slots)

    @rule(
        target=flights,
        pool=st.sampled_from(["small", "large"]),
        tokens=st.integers(1, 3000),
        ttft=st.sampled_from([0.25, 0.4, 2.0]),
        tenant=st.sampled_from(["", "a", "b"]),
        several=st.integers(1, 4),
    )
    def arrive(self, pool: str, tokens: int, ttft: float, tenant: str, several: int) -> object:
        made = []
        for _ in range(several):
            self.made += 1
            flight = Flight(
                id=str(self.made),
                type=RequestType(Size.S, Size.S),
                input_tokens=tokens,
                uncached_tokens=tokens,
                output_q50=50.0,
                output_q90=90.0,
                arrived=Seconds(self.now),
                ttft=Seconds(ttft),
                tpot=Seconds(0.1),
                tenant=tenant,
            )
            self.waiting[flight.id] = flight
            made.append(flight)
            self.follow(self.steering.arrive(flight, pool, Seconds(self.now)))
        return multiple(*made)

    @rule(flight=flights, tokens=st.floats(0.5, 200.0))
    def answer(self, flight: Flight, tokens: float) -> None:
        """Output arrives; of a request that waits or has ended, none does."""
        if flight.id in self.running:
            self.running[flight.id][1].book.progress(flight, tokens, Seconds(self.now))
            self.look()

    @rule(flight=consumes(flights))
    def leave(self, flight: Flight) -> None:
        """It is answered, or its client goes away, wherever it is."""
        if flight.id in self.running:
            _, instance = self.running.pop(flight.id)
            instance.book.close(flight)
            instance.book.close(flight)  # twice does nothing
        elif self.waiting.pop(flight.id, None) is not None:
            queues = self.steering.queues.values()
            assert sum(queue.remove(flight) for queue in queues) == 1
        self.ended.add(flight.id)
        self.look()

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.2, 1.0, 30.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.look()

    @rule(which=st.integers(0, 2), ready=st.booleans(), clock=st.sampled_from([None, *CLOCKS]))
    def change(self, which: int, ready: bool, clock: MegaHertz | None) -> None:
        """Its health or its clock changes, and its governor looks at it."""
        instance = self.instances[which]
        instance.ready, instance.clock = ready, clock
        self.steering.tick(instance, Seconds(self.now))
        self.look()

    @rule(which=st.integers(0, 2), slots=st.integers(0, 6))
    def learn(self, which: int, slots: int) -> None:
        self.instances[which].slots = slots
        self.look()

    def look(self) -> None:
        before = {name: queue.every(1, 0) for name, queue in self.steering.queues.items()}
        outcome = self.steering.assign(Seconds(self.now))
        self.follow(outcome)
        granted = [grant.flight.id for grant in outcome.grants]
        for order in before.values():
            for tenant in {f.tenant for f in order}:
                mine = [f for f in order if f.id in granted and not f.lost and f.tenant == tenant]
                places = [granted.index(f.id) for f in mine]
                assert places == sorted(places), "granted in the order of the tenant's queue"

    def follow(self, outcome: Outcome) -> None:
        for grant in outcome.grants:
            assert self.waiting.pop(grant.flight.id) is grant.flight, "granted once, and only while it waits"
            assert grant.instance.ready
            assert grant.instance.book.running <= grant.instance.slots
            self.running[grant.flight.id] = (grant.flight, grant.instance)
        for reject in outcome.rejects:
            assert self.waiting.pop(reject.flight.id) is reject.flight
            assert reject.retry_after >= 1.0
            self.ended.add(reject.flight.id)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        queued = [f.id for queue in self.steering.queues.values() for f in queue.every(1, 0)]
        assert sorted(queued) == sorted(self.waiting)
        held = [name for instance in self.instances for name in instance.book.flights]
        assert sorted(held) == sorted(self.running)
        assert len(queued) + len(held) + len(self.ended) == self.made

    @invariant()
    def queues_are_in_order_and_know_their_tokens(self) -> None:
        for queue in self.steering.queues.values():
            keys = [entry[:2] for entry in queue.waiting]
            assert keys == sorted(keys)
            assert queue.tokens == sum(f.uncached_tokens for f in queue.every(1, 0))
            self.by_deadline(queue)

    def by_deadline(self, queue: PoolQueue) -> None:
        """The earlier is due first (within `fairness`), but for those of heavy tenants."""
        latest = 0.0
        for _, _, flight in queue.waiting:
            if not flight.lost:
                assert flight.deadline >= latest - RULES.fairness - 1e-9
                latest = max(latest, flight.deadline)
        flights = [entry[2] for entry in queue.waiting if entry[2].tenant not in queue.tenants.heavies]
        first = queue.head()
        assert (first in flights) == bool(flights), "heavy tenants go last"
        assert (first is None) == (not queue.waiting)

    @invariant()
    def books_say_what_they_hold(self) -> None:
        for instance in self.instances:
            book, flights = instance.book, instance.book.flights.values()
            peers = [i.book for i in self.instances if i.pool == instance.pool]
            held = Counter(f.tenant for peer in peers for f in peer.flights.values())
            assert book.tenants.total == held.total()
            assert all(book.tenants.running(tenant) == count for tenant, count in held.items())
            assert book.queued_tokens == sum(f.uncached_tokens for f in book.prompts.values())
            assert book.decoding == len(book.flights) - len(book.prompts)
            assert book.held == pytest.approx(sum(f.input_tokens + f.tokens_out for f in flights), abs=1e-6)

    def teardown(self) -> None:
        """When everybody has gone nothing is left."""
        for flight, instance in self.running.values():
            instance.book.close(flight)
        for flight in self.waiting.values():
            assert sum(queue.remove(flight) for queue in self.steering.queues.values()) == 1
        for instance in self.instances:
            book = instance.book
            counts = book.running, len(book.prompts), book.queued_tokens, book.decoding
            assert (*counts, book.held, book.context, book.promised) == (0, 0, 0, 0, 0.0, 0.0, 0.0)
        assert [(len(queue), queue.tokens) for queue in self.steering.queues.values()] == [(0, 0.0)] * 2


TestAdmission = Machine.TestCase
TestAdmission.settings = settings(max_examples=80, stateful_step_count=40)
