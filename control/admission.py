"""Pure: who goes to an engine next, who waits, who is refused.

Theory of operation. Each pool has one queue, earliest deadline first; deadline = arrival + TTFT objective.
An engine takes prompts in the order it gets them, so order can only be kept here: `assign` sends no more
than the engine is about to need (`prompt_window`, a share of the tightest TTFT objective) and never more
sequences than it has slots. A short prompt that must be answered in 250 ms then passes a long one that may
take 2 s.

Slots are learned, since vLLM does not publish them: the most sequences seen running while some waited;
before that has been seen, a small assumption that grows with what has been seen running.

A request that cannot be answered in time even at maximum clock is *lost*: it gets a second, later deadline,
because keeping it first would make others late, and keeping it last would let it starve. Where the pool sheds
it is refused instead; at once, where the queue before it moves too slowly. A full pool's requests spill to
pools at least as large in both dimensions, never to smaller ones (papers §1.7).

`assign` is one pass: it grants and refuses until nothing more fits, changes the books for each grant (so
that the next pick sees it), and returns everything it did. Every event re-runs it: arrival, first token,
completion, cancel, tick.

Fairness needs no quota. A tenant that was granted much more than the mean of all (`heavy`) goes after the
others, so that its queue is its own; of other requests due within the same `fairness` seconds, the tenant
that was granted the least lately goes first. A pool with one tenant, or where nobody waits, knows no
difference.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from control.arrivals import Fading
from control.pick import Rng, pick
from control.projection import Load, Pace
from control.state import Flight, Instance, PoolRules
from joulegate.units import Seconds

ASSUMED_SLOTS = 16
MAX_TENANTS = 1000
TENANT_MEMORY = Seconds(60.0)
TIMELY = 0.5  # share of its TTFT objective before which nobody asks whether a request is lost
Key = tuple[bool, float, int]  # of the order in a queue
NEVER = 1e12  # seconds: a deadline that nothing reaches


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """Constants of admission."""

    prompt_window: float = 0.05  # share of the tightest TTFT that the prompts in an engine may take
    second_chance: float = 1.5  # TTFT objectives after which a lost request is due instead
    fairness: Seconds = Seconds(0.05)  # deadlines this close count as equal between tenants
    heavy: float = 1.5  # times the mean work of the tenants: who was granted more goes after the others
    max_queued: int = 10_000  # per pool; beyond it a request is refused at once
    max_wait: Seconds = Seconds(600.0)  # a request that waited so long is refused
    hope: float = 0.7  # share of its TTFT that a request may be expected to wait where the pool sheds
    edf: bool = True  # false: first come first served, nothing is lost


@dataclass(slots=True)  # not frozen: made for every request
class Grant:
    flight: Flight
    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Refused. `retry_after`: when the backlog is expected to be worked off."""

    flight: Flight
    reason: str
    retry_after: Seconds


@dataclass(slots=True)  # not frozen, as above
class Outcome:
    grants: tuple[Grant, ...] = ()
    rejects: tuple[Reject, ...] = ()


@dataclass(slots=True, eq=False)
class PoolQueue:
    """Requests of one pool that have no instance yet."""

    rules: PoolRules
    waiting: list[tuple[Key, int, Flight]] = field(default_factory=list)  # in order
    tokens: float = 0.0  # uncached prompt tokens queued
    tenants: dict[str, Fading] = field(
        default_factory=dict
    )  # prompt tokens granted lately; last granted, last
    work: Fading = field(default_factory=lambda: Fading(TENANT_MEMORY))  # of all of them
    interval: float = 0.0  # seconds between two grants while some wait; a mean of the last twenty or so
    granted_at: float | None = None  # the last grant, if some waited after it
    _serial: int = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def refusal(self, flight: Flight, admission: AdmissionRules) -> str:
        """Why a new request is refused before it is queued; "": it is not."""
        if len(self.waiting) >= admission.max_queued:
            return f"{len(self.waiting)} requests are queued"
        if self.rules.shed and self.waiting and self.wait(flight, admission) > admission.hope * flight.ttft:
            return "its TTFT objective is out of reach"
        return ""

    def wait(self, flight: Flight, admission: AdmissionRules) -> float:
        """Seconds until those that go before `flight` have gone, at the pace of late."""
        due = flight.deadline if admission.edf else flight.arrived
        key = self._key(flight, due, admission)
        return self.interval * bisect_left(self.waiting, (key, self._serial + 1))

    def push(self, flight: Flight, admission: AdmissionRules) -> None:
        self._serial += 1
        due = flight.deadline if admission.edf else flight.arrived
        insort(self.waiting, (self._key(flight, due, admission), self._serial, flight))
        self.tokens += flight.uncached_tokens

    def remove(self, flight: Flight) -> bool:
        """Take out a request that left (cancelled); False if it is not here."""
        for i, entry in enumerate(self.waiting):
            if entry[2] is flight:
                del self.waiting[i]
                self.tokens -= flight.uncached_tokens
                return True
        return False

    def every(self, stride: int, first: int) -> tuple[Flight, ...]:
        """Of those waiting, in order, every `stride`-th from `first` on."""
        return tuple(entry[2] for entry in self.waiting[first::stride])

    def head(self) -> Flight | None:
        return self.waiting[0][2] if self.waiting else None

    def pop(self) -> Flight:
        flight = self.waiting.pop(0)[2]
        self.tokens -= flight.uncached_tokens
        return flight

    def lose(self, admission: AdmissionRules) -> Flight:
        """The head cannot be in time any more: give it a later deadline, so that it delays nobody who can."""
        _, serial, flight = self.waiting.pop(0)
        flight.lost = True
        due = flight.arrived + admission.second_chance * flight.ttft
        insort(self.waiting, (self._key(flight, due, admission), serial, flight))
        return flight

    def _key(self, flight: Flight, due: float, admission: AdmissionRules) -> Key:
        """Heavy tenants last; deadlines in slots of `fairness`; in a slot by work granted.

        Its work in powers of two, so that requests of one tenant stay in the order they came.
        """
        worked, count = self.worked(flight), len(self.tenants)
        heavy = count > 1 and worked * count > admission.heavy * self.work.total(flight.arrived)
        return heavy, min(due, NEVER) // admission.fairness, int(worked).bit_length()

    def granted(self, flight: Flight, now: Seconds) -> None:
        """Remember whose work is done, and how fast; a tenant long unseen is forgotten."""
        if self.granted_at is not None:
            self.interval += 0.05 * (now - self.granted_at - self.interval)
        self.granted_at = float(now) if self.waiting else None
        tokens = self.tenants.pop(flight.tenant, None) or Fading(TENANT_MEMORY)
        tokens.add(flight.uncached_tokens, now)
        self.tenants[flight.tenant] = tokens
        self.work.add(flight.uncached_tokens, now)
        oldest = next(iter(self.tenants))
        if len(self.tenants) > MAX_TENANTS or self.tenants[oldest].total(now) < 1.0:
            del self.tenants[oldest]

    def worked(self, flight: Flight) -> float:
        """Prompt tokens that this request's tenant was granted lately."""
        tokens = self.tenants.get(flight.tenant)
        return tokens.total(flight.arrived) if tokens is not None else 0.0


@dataclass(frozen=True, slots=True)
class Tier:
    """The instances of one pool; `queue` is where its own requests wait."""

    queue: PoolQueue
    instances: tuple[Instance, ...]


Layout = Mapping[str, tuple[Tier, ...]]  # pool -> itself, then the pools it may spill to, nearest first


def layout(queues: Mapping[str, PoolQueue], instances: Sequence[Instance]) -> Layout:
    """Who may serve whom; it only changes when instances come or go."""
    tiers = {n: Tier(q, tuple(i for i in instances if i.pool == n)) for n, q in queues.items()}
    reach = {n: q.rules.reach for n, q in queues.items()}

    def larger(name: str) -> list[str]:
        own = reach[name]
        able = [n for n, r in reach.items() if n != name and r[0] >= own[0] and r[1] >= own[1]]
        return sorted(able, key=lambda n: (reach[n], n))

    return {name: (tiers[name], *(tiers[n] for n in larger(name))) for name in queues}


def assign(
    places: Layout,
    rules: AdmissionRules,
    rng: Rng,
    now: Seconds,
    share: float = 1.0,
) -> Outcome:
    """Grant and refuse until nothing more fits. Mutates queues and books; the pools of one model."""
    grants: list[Grant] = []
    rejects: list[Reject] = []
    for tiers in places.values():
        if tiers[0].queue.waiting:
            rejects += _drop_lost(tiers, rules, now)
            grants += _grant(tiers, rng, now, share)
    return Outcome(tuple(grants), tuple(rejects))


def _grant(tiers: Sequence[Tier], rng: Rng, now: Seconds, share: float) -> list[Grant]:
    queue, grants = tiers[0].queue, list[Grant]()
    while (flight := queue.head()) is not None:
        grant = place(flight, tiers, rng, now, share)
        if grant is None:
            break
        queue.pop()
        grants.append(grant)
    return grants


def place(flight: Flight, tiers: Sequence[Tier], rng: Rng, now: Seconds, share: float) -> Grant | None:
    """Send `flight`, the first in the queue of `tiers[0]`, where it fits; None: it has to wait."""
    queue = tiers[0].queue
    for tier in tiers:
        if tier.queue is not queue and tier.queue.waiting:
            continue  # it has its own to serve first
        open_ = [i for i in tier.instances if i.book.queued_tokens < i.prompt_window or takes_prompts(i, now)]
        chosen = pick(flight, open_, rng, share) if open_ else None
        if chosen is not None:
            queue.granted(flight, now)
            chosen.instance.book.send(flight, now)
            return Grant(flight, chosen.instance, chosen.reason)
    return None


def takes_prompts(instance: Instance, now: Seconds) -> bool:
    """Whether the engine is about to need more prompt tokens: what it holds, less what it has done by now."""
    book, window = instance.book, instance.prompt_window
    if book.queued_tokens < window:
        return True
    return book.queued_tokens - instance.prompt_rate * (now - book.served_at) < window


def _drop_lost(tiers: Sequence[Tier], rules: AdmissionRules, now: Seconds) -> list[Reject]:
    """Mark what cannot be in time any more; refuse it if the pool sheds, or once it waited too long."""
    queue, rejects = tiers[0].queue, list[Reject]()
    if now - queue.waiting[0][2].arrived < TIMELY * queue.waiting[0][2].ttft:
        return rejects
    everyone = [i for tier in tiers for i in tier.instances if i.ready]
    while rules.edf and (head := queue.head()) is not None and not head.lost and is_lost(head, everyone, now):
        flight = queue.lose(rules)
        if queue.rules.shed:
            queue.remove(flight)
            rejects.append(Reject(flight, "its TTFT objective is out of reach", backlog(queue, everyone)))
    while (head := queue.head()) is not None and now - head.arrived > rules.max_wait:
        queue.pop()
        rejects.append(Reject(head, "waited too long", backlog(queue, everyone)))
    return rejects


def is_lost(flight: Flight, instances: Sequence[Instance], now: Seconds) -> bool:
    """No instance could answer in time even if it began at once at maximum clock."""
    left = flight.deadline - now
    if left <= 0.0:
        return True
    timed = [i for i in instances if i.model is not None]
    if not timed or left > 0.5 * flight.ttft:  # most of its time is still there: do not work it out
        return False
    return all(alone(flight, i) > left for i in timed)


def alone(flight: Flight, instance: Instance) -> float:
    """Seconds until the first token if `instance` began now at maximum clock, beside what it decodes."""
    model = instance.model
    if model is None:
        return 0.0
    book = instance.book
    load = Load(book.decoding, book.context, flight.uncached_tokens, instance.limits.chunk_budget)
    return Pace(model, load, model.clocks[-1], instance.correction).prompts(flight.uncached_tokens)


def backlog(queue: PoolQueue, instances: Sequence[Instance]) -> Seconds:
    """When the queue is expected to be worked off at maximum clock: the honest Retry-After. At least 1 s."""
    rates = []
    for i in instances:
        if i.model is not None:
            chunk = i.limits.chunk_budget
            load = Load(i.book.decoding, i.book.context, queue.tokens, chunk)
            rates.append(chunk / Pace(i.model, load, i.model.clocks[-1], i.correction).iteration(chunk))
    if not rates:
        return Seconds(1.0 + 0.1 * len(queue))
    return Seconds(max(1.0, queue.tokens / sum(rates)))


def refuse(queue: PoolQueue, flight: Flight, why: str, instances: Sequence[Instance]) -> Reject:
    """What a new request is told that is not queued."""
    return Reject(flight, why, backlog(queue, instances))


def learned_slots(slots: int, running: int, waiting: int, known: int | None) -> int:
    """Sequences an engine may hold, from its own gauges.

    The most running while some wait is its true limit; without any wait, running as many as allowed shows
    that it takes more, so the assumption grows by a quarter.
    """
    if known is not None:
        return known
    if waiting > 0 and running > 0:
        return running
    if running >= slots:
        return slots + max(1, slots // 4)
    return slots
