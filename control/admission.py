"""Pure: who goes to an engine next, who waits, who is refused.

Theory of operation. Each pool has one queue, earliest deadline first; deadline = arrival + TTFT objective.
An engine takes prompts in the order it gets them, so order can only be kept here: `assign` sends no more
than the engine is about to need (`prompt_window`, a share of the tightest TTFT objective) and never more
sequences than it has slots. A short prompt that must be answered in 250 ms then passes a long one that may
take 2 s. To an engine that reads none it may wait for a higher clock (`control.raising`).

Slots are learned, since vLLM does not publish them: the most sequences seen running while some waited;
before that has been seen, a small assumption that grows with what has been seen running.

A request that cannot be answered in time even at maximum clock is *lost*: it gets a second, later deadline,
because keeping it first would make others late, and keeping it last would let it starve. A full pool's
requests spill to pools at least as large in both dimensions, never to smaller ones (papers §1.7).

A pool that sheds refuses at arrival or, in practice, never: a client that is told after its whole TTFT could
have gone elsewhere at once. The n-th in the queue is expected to wait for n intervals between grants and
`caution` times the root of n more, as if places came free by chance. Caution is learned from who was late, so
that few of those let in are: where answers are alike, places come free in bursts. Whoever is late all the
same is served after the others.

`assign` is one pass: it grants and refuses until nothing more fits, changes the books for each grant (so
that the next pick sees it), and returns everything it did. Every event re-runs it: arrival, first token,
completion, cancel, tick.

Fairness needs no quota (`control.tenants`): a tenant that asks for much more than the mean goes after the
others and leaves them room; of other requests due within the same `fairness` seconds, the tenant with less in
flight goes first.

Missing input: where no instance has a model nobody is lost before the deadline has passed, and `Retry-After`
goes by the pace of late; an engine whose clock was never decided gets 2,048 tokens of prompts at a time.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from control.pick import Pick, Rng, drawn, pick
from control.projection import Load, Pace
from control.raising import waits_for_clock
from control.state import Flight, Instance, PoolRules
from control.tenants import Tenants
from joulegate.units import Seconds

ASSUMED_SLOTS = 16
TIMELY = 0.5  # share of its TTFT objective before which nobody asks whether a request is lost
Entry = tuple[float, int, Flight]  # of a queue: due, in slots of `fairness`; serial
COMPARED = 16  # of those due at the same time, so many are looked at for the tenant with least in flight
MAX_CAUTION = 4.0
CAUTION_STEP = 0.2  # more where one was late; as many in time as should be for one that is late undo it
NEVER = 1e12  # seconds: a deadline that nothing reaches
MANY = 64  # instances of a pool, beyond which two are drawn before all are looked at


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """Constants of admission."""

    prompt_window: float = 0.05  # share of the tightest TTFT that the prompts in an engine may take
    second_chance: float = 1.5  # TTFT objectives after which a lost request is due instead
    fairness: Seconds = Seconds(0.05)  # deadlines this close count as equal between tenants
    max_queued: int = 10_000  # per pool; beyond it a request is refused at once
    max_wait: Seconds = Seconds(600.0)  # a request that waited so long is refused
    late: float = 0.05  # of those who wait where the pool sheds, the share that may be late
    told: Seconds = Seconds(0.05)  # a pool that sheds refuses nobody who has waited longer
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
    waiting: list[Entry] = field(default_factory=list)  # in order, whoever sent them
    tokens: float = 0.0  # uncached prompt tokens queued
    tenants: Tenants = field(default_factory=Tenants)
    interval: float = 0.0  # seconds between two grants while some wait; a mean of the last twenty or so
    granted_at: float | None = None  # the last grant, if some have waited since
    caution: float = 1.0
    first_after: float = 0.0  # seconds from a grant to the first token, where the last one went
    apart: bool = False  # long answers are kept from where long prompts are read (`control.pick`)
    _serial: int = 0
    _places: dict[str, Entry] = field(default_factory=dict)  # by flight
    _light: list[Entry] = field(default_factory=list)  # of `waiting`, those of tenants that are not heavy
    _changes: int = 0  # of who is heavy, when that was looked at

    def __len__(self) -> int:
        return len(self.waiting)

    def __contains__(self, flight: str) -> bool:
        return flight in self._places

    def refusal(self, flight: Flight, admission: AdmissionRules) -> str:
        """Why a new request is refused before it is queued; "": it is not."""
        if len(self.waiting) >= admission.max_queued:
            return f"{len(self.waiting)} requests are queued"
        if self.rules.shed and self.wait(flight, admission) > flight.ttft:
            return "its TTFT objective is out of reach"
        return ""

    def wait(self, flight: Flight, admission: AdmissionRules) -> float:
        """Seconds to the first token of `flight`, carefully; the first in the queue may always hope."""
        entry = (_slot(flight, admission), self._serial + 1, flight)
        light = self._of_light()
        ahead = bisect_left(light, entry)
        if flight.tenant in self.tenants.heavies:
            ahead = len(light) + bisect_left(self.waiting, entry) - ahead
        place = ahead + 1
        if place == 1:
            return 0.0
        return self.interval * (place + self.caution * sqrt(place)) + self.first_after

    def push(self, flight: Flight, admission: AdmissionRules) -> None:
        self._serial += 1
        light, entry = self._of_light(), (_slot(flight, admission), self._serial, flight)
        insort(self.waiting, entry)
        if light is not self.waiting and flight.tenant not in self.tenants.heavies:
            insort(light, entry)
        self._places[flight.id] = entry
        self.tokens += flight.uncached_tokens
        self.tenants.waits(flight.tenant)

    def remove(self, flight: Flight) -> bool:
        """Take out a request that was granted or left (cancelled); False if it is not here."""
        entry = self._places.pop(flight.id, None)
        if entry is None:
            return False
        light = self._of_light()
        del self.waiting[bisect_left(self.waiting, entry)]
        if light is not self.waiting and flight.tenant not in self.tenants.heavies:
            del light[bisect_left(light, entry)]
        self.tokens -= flight.uncached_tokens
        self.tenants.waits_no_more(flight.tenant)
        if not self.waiting:
            self.granted_at = None
        return True

    def every(self, stride: int, first: int) -> tuple[Flight, ...]:
        """Of those waiting, in order, every `stride`-th from `first` on."""
        return tuple(entry[2] for entry in self.waiting[first::stride])

    def head(self) -> Flight | None:
        """Who goes next: heavy tenants last, then the earliest due, then who has least in flight."""
        line = self._of_light() or self.waiting
        if not line:
            return None
        due, running = line[0][0], self.tenants.running
        if len(line) == 1 or line[1][0] != due:
            return line[0][2]
        equal = (entry for entry in line[:COMPARED] if entry[0] == due)
        return min(equal, key=lambda entry: (running(entry[2].tenant), entry[1]))[2]

    def _of_light(self) -> list[Entry]:
        """Those who go first, in order; `waiting` itself where no tenant is heavy."""
        tenants = self.tenants
        if self._changes != tenants.changes:
            self._changes, heavies = tenants.changes, tenants.heavies
            self._light = [entry for entry in self.waiting if entry[2].tenant not in heavies]
        return self._light if tenants.heavies else self.waiting

    def lose(self, flight: Flight, admission: AdmissionRules) -> None:
        """It cannot be in time any more: give it a later deadline, so that it delays nobody who can."""
        self.remove(flight)
        flight.lost = True
        self.push(flight, admission)

    def granted(self, flight: Flight, first_after: float, admission: AdmissionRules, now: Seconds) -> None:
        """One that waited goes: learn how fast the queue moves, and who is late.

        `first_after`: seconds from a grant to the first token where it goes.
        """
        if self.granted_at is not None:
            self.interval += 0.05 * (now - self.granted_at - self.interval)
        self.granted_at = float(now)  # until nobody waits
        self.first_after = first_after
        late = now + first_after > flight.deadline
        self.caution += CAUTION_STEP if late else -CAUTION_STEP * admission.late
        self.caution = min(MAX_CAUTION, max(0.0, self.caution))


def _slot(flight: Flight, admission: AdmissionRules) -> float:
    """When it is due (first come first served: came), in slots of `fairness`."""
    due = float(flight.deadline if admission.edf else flight.arrived)
    if flight.lost:
        due = flight.arrived + admission.second_chance * flight.ttft
    return min(due, NEVER) // admission.fairness


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
            grants += _grant(tiers, rules, rng, now, share)
    return Outcome(tuple(grants), tuple(rejects))


def _grant(tiers: Sequence[Tier], rules: AdmissionRules, rng: Rng, now: Seconds, share: float) -> list[Grant]:
    queue, grants = tiers[0].queue, list[Grant]()
    while (flight := queue.head()) is not None:
        grant = place(flight, tiers, rng, now, share)
        if grant is None:
            break
        queue.granted(flight, grant.instance.book.first_after, rules, now)
        queue.remove(flight)
        grants.append(grant)
    return grants


def place(flight: Flight, tiers: Sequence[Tier], rng: Rng, now: Seconds, share: float) -> Grant | None:
    """Send `flight`, the first in the queue of `tiers[0]`, where it fits; None: it has to wait."""
    queue = tiers[0].queue
    for tier in tiers:
        if tier.queue is not queue and tier.queue.waiting:
            continue  # it has its own to serve first
        if held_back(flight, tier):
            continue
        chosen = _chosen(flight, tier, rng, now, share)
        if chosen is None:
            continue
        if tier.queue is queue and _too_soon(flight, chosen.instance, tier, now):
            return None
        chosen.instance.send(flight, now)
        return Grant(flight, chosen.instance, chosen.reason)
    return None


def _too_soon(flight: Flight, instance: Instance, home: Tier, now: Seconds) -> bool:
    """Whether it had better wait for a higher clock; it may be queued already or not.

    Only at home: no other pool raises its clocks for what waits here.
    """
    queue = home.queue
    tokens = queue.tokens + (0 if flight.id in queue else flight.uncached_tokens)
    return waits_for_clock(flight, tokens / len(home.instances), instance, now)


def _chosen(flight: Flight, tier: Tier, rng: Rng, now: Seconds, share: float) -> Pick | None:
    """Of those that take prompts now."""
    instances, apart = tier.instances, tier.queue.apart
    if len(instances) > MANY and not flight.session:
        lucky = drawn(flight, instances, rng, share)
        if lucky is not None and takes_prompts(lucky, now):
            return Pick(lucky, "no rise")
    open_ = [i for i in instances if i.book.queued_tokens < i.prompt_window or takes_prompts(i, now)]
    return pick(flight, open_, rng, share, apart) if open_ else None


def held_back(flight: Flight, tier: Tier) -> bool:
    """Whether its tenant is heavy and may not have one more place: the others' next ones stay free."""
    tenants = tier.queue.tenants
    if flight.tenant not in tenants.heavies:
        return False
    slots = sum(i.slots for i in tier.instances if i.ready)
    running = sum(i.book.running for i in tier.instances if i.ready)
    return slots - running <= tenants.reserve(slots)


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
        queue.lose(head, rules)
        if queue.rules.shed and now - head.arrived <= rules.told:
            queue.remove(head)
            rejects.append(Reject(head, "its TTFT objective is out of reach", backlog(queue, everyone)))
    while (head := queue.head()) is not None and now - head.arrived > rules.max_wait:
        queue.remove(head)
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
    top = model.clocks[-1]
    return Pace(model, load, top, instance.factor(top)).prompts(flight.uncached_tokens)


def backlog(queue: PoolQueue, instances: Sequence[Instance]) -> Seconds:
    """When the queue is expected to be worked off: the honest Retry-After. At least 1 s.

    At the pace of late, or as maximum clock takes in prompts, whichever is slower.
    """
    paced = queue.interval * len(queue)
    rates = []
    for i in instances:
        if i.model is not None:
            chunk = i.limits.chunk_budget
            load = Load(i.book.decoding, i.book.context, queue.tokens, chunk)
            top = i.model.clocks[-1]
            rates.append(chunk / Pace(i.model, load, top, i.factor(top)).iteration(chunk))
    if not rates:
        return Seconds(max(1.0 + 0.1 * len(queue), paced))
    return Seconds(max(1.0, queue.tokens / sum(rates), paced))


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
