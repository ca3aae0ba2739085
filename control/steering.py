"""Pure: the laws of one model's fleet put together: what gateway and simulator call.

Theory of operation. A request comes (`arrive`), is seen to make progress (`LoadBook.progress`), and leaves
(`close`). In between the queues are worked off (`assign`) whenever something frees room, and each instance
gets a clock every tick (`tick`), or at once when what was sent to it leaves the headroom granted with its
last decision (`exceeded`). What the laws learn (how bursty arrivals are, what the load is, how much
headroom is needed) is kept here, per pool; nothing here knows about bytes, sockets or clocks of the wall.
Missing input: without a model nothing is learned and no floor is set; before LOAD_KNOWN seconds of arrivals
there is no floor either, and the governor keeps maximum clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from math import inf

from control.admission import (
    MANY,
    TIMELY,
    AdmissionRules,
    Grant,
    Layout,
    Outcome,
    PoolQueue,
    Reject,
    assign,
    backlog,
    held_back,
    layout,
    place,
    takes_prompts,
)
from control.arrivals import Arrivals
from control.floor import Demand, cheapest, going_price, in_steps, settle
from control.governor import KV_SHARE, STALL_SHARE, Decision, GovernorRules, Memory, Outlook, choose
from control.pick import Rng, fits, pick
from control.prices import PriceRules, Prices
from control.state import Flight, Instance, PoolRules
from control.twin import Twin
from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds

TWIN_PATIENCE = 60.0  # seconds that the twin waits for a request to end before it goes on without it
ENDS_BY = 2.0  # E2E objectives, if longer: whoever misses one must have ended to be learned from
FIRST_STRETCH = 1.1  # time in system over that at maximum clock, until the price has been learned
LOAD_KNOWN = 10.0  # seconds of arrivals before the load is believed
LEAST_PRICE = 0.1  # of a busy GPU's watts, where slow clocks save next to nothing: it is bound to its start
FEW = 16  # requests in flight for each instance: with more, long answers are held by most of them anyway
SPARED = 8  # instances from which on some can be left to long prompts
FLOOR_EVERY = 2.0  # seconds between two searches for the floor of the load
LEARN_EVERY = 1.0  # seconds between two lessons from requests that ended
RANKED_FOR = 0.25  # seconds until the instances in rotation are counted anew where they are MANY


@dataclass(slots=True, eq=False)
class PoolState:
    """What is learned about one pool."""

    queue: PoolQueue
    arrivals: Arrivals = field(default_factory=Arrivals)
    instances: int = 1
    chunk: int = 2048  # smallest chunk budget among them
    prices: Prices = field(init=False)
    ranks: dict[str, int] = field(default_factory=dict)  # of the instances in rotation
    ranked_at: float = -1e9
    floor: "Floor | None" = None

    def __post_init__(self) -> None:
        self.prices = Prices(PriceRules(), self.queue.rules.objectives)

    def demand(self, now: Seconds) -> Demand | None:
        """What arrives, all instances together; None while nothing has."""
        tokens, output = self.arrivals.means(now)
        return Demand(self.arrivals.rate(now), tokens, tokens, output) if output > 0.0 else None


@dataclass(frozen=True, slots=True)
class Floor:
    """The last search for the floor of the load: good for every instance of the same kind."""

    model: EngineModel
    chunk: int
    correction: float
    per_step: float
    at: float
    clock: MegaHertz
    prompts: float  # share of the time that iterations with prompts take

    def fits(self, instance: Instance, now: Seconds) -> bool:
        return (
            self.model is instance.model
            and now - self.at < FLOOR_EVERY
            and self.correction == instance.correction
            and self.per_step == instance.tokens_per_step
            and self.chunk == instance.limits.chunk_budget
        )


@dataclass(slots=True, eq=False)
class Steered:
    """What is remembered about one instance between decisions."""

    instance: Instance
    memory: Memory = field(default_factory=Memory)
    decision: Decision | None = None
    floor: Floor | None = None
    learned_at: float = -1e9
    twin: Twin | None = None
    unordered: list[tuple[float, int, Flight]] = field(default_factory=list)  # ended, a heap by arrival
    ends: Iterator[int] = field(default_factory=count)  # of those that arrived together, who ended first
    twinned_to: float = -1e9  # arrival of the last request the twin has seen


class Steering:
    """The fleet of one model. Not thread-safe; every method is synchronous."""

    def __init__(
        self,
        pools: Sequence[PoolRules],
        instances: Sequence[Instance],
        admission: AdmissionRules,
        governor: GovernorRules,
        rng: Rng,
        share: float = 1.0,
    ) -> None:
        self.pools = {rules.name: PoolState(PoolQueue(rules)) for rules in pools}
        self.steered = {i.name: Steered(i) for i in instances}
        self.admission = admission
        self.governor = governor
        self.share = share
        self._rng = rng
        self.places: Layout = {}
        self._lay_out()

    def join(self, instance: Instance) -> None:
        """An instance has come."""
        self.steered[instance.name] = Steered(instance)
        self._lay_out()

    def leave(self, name: str) -> None:
        """An instance is gone; it must be empty."""
        del self.steered[name]
        self._lay_out()

    def relabel(self, rules: Sequence[PoolRules]) -> None:
        """Instances have changed pools, or pools what they serve; requests stay where they are."""
        for each in rules:
            self.pools[each.name].queue.rules = each
        self._lay_out()

    def _lay_out(self) -> None:
        instances = [s.instance for s in self.steered.values()]
        self.places = layout(self.queues, instances)
        for instance in instances:
            instance.book.join(self.pools[instance.pool].queue.tenants)
        for name, state in self.pools.items():
            mine = [i for i in instances if i.pool == name]
            state.instances = len(mine)
            state.chunk = min((i.limits.chunk_budget for i in mine), default=state.chunk)
            state.ranked_at = -1e9

    def resume(self, pools: Mapping[str, "PoolState"]) -> None:
        """Take over what another steering of the same pools has learned; requests stay where they are."""
        for name, learned in pools.items():
            mine = self.pools[name]
            mine.prices = learned.prices

    @property
    def queues(self) -> Mapping[str, PoolQueue]:
        return {name: state.queue for name, state in self.pools.items()}

    @property
    def queued(self) -> int:
        count = 0
        for state in self.pools.values():
            count += len(state.queue.waiting)
        return count

    def arrive(self, flight: Flight, pool: str, now: Seconds) -> Outcome:
        """A request for `pool`; what it and others are granted or refused."""
        state = self._arrived(flight, pool, now)
        if not self.queued and now - flight.arrived < TIMELY * flight.ttft:  # as `assign`, for one alone
            grant = self._at_home(flight, now) if flight.session else None
            grant = grant or place(flight, self.places[pool], self._rng, now, self.share)
            if grant is not None:
                return Outcome((grant,))
        if why := state.queue.refusal(flight, self.admission):
            return Outcome(rejects=(Reject(flight, why, backlog(state.queue, self._of(pool))),))
        state.queue.push(flight, self.admission)
        return self.assign(now)

    def send(self, flight: Flight, pool: str, instance: Instance, now: Seconds) -> Outcome:
        """A request for `pool` that only `instance` can serve: at once, past the queues, where it fits."""
        self._arrived(flight, pool, now)
        if not fits(flight, instance):
            return Outcome()
        instance.send(flight, now)
        return Outcome(grants=(Grant(flight, instance, "no other can"),))

    def _at_home(self, flight: Flight, now: Seconds) -> Grant | None:
        """Where most of the session is cached, whatever pool that is in now, while objectives hold there."""
        homes = (s.instance for s in self.steered.values() if flight.session in s.instance.sessions)
        open_now = [home for home in homes if takes_prompts(home, now)]
        waits = {pool: held_back(flight, self.places[pool][0]) for pool in {home.pool for home in open_now}}
        able = [home for home in open_now if not waits[home.pool]]
        found = pick(flight, able, self._rng, self.share)
        if found is None or found.reason != "session":
            return None
        found.instance.send(flight, now)
        return Grant(flight, found.instance, found.reason)

    def assign(self, now: Seconds) -> Outcome:
        """Work off the queues; call it whenever room may have come free."""
        return assign(self.places, self.admission, self._rng, now, self.share)

    def next_look(self, now: Seconds) -> Seconds:
        """When the queues are worth another look although nothing was heard: an engine will need prompts.

        Meaningful while something is queued. Never earlier than `now`.
        """
        soonest = float("inf")
        for steered in self.steered.values():
            instance = steered.instance
            over = instance.book.queued_tokens - instance.prompt_window
            if over < 0.0 or instance.prompt_rate <= 0.0:
                return now
            soonest = min(soonest, instance.book.served_at + over / instance.prompt_rate)
        return Seconds(max(float(now), soonest))

    def exceeded(self, instance: Instance) -> bool:
        """Whether what was sent to it, or waits for it, leaves the headroom of its last decision."""
        book, room, pool = instance.book, instance.at_clock, self.pools[instance.pool]
        prompts = book.queued_tokens + pool.queue.tokens / max(1, pool.instances)
        return book.running > room.decoding or prompts > room.prompt_tokens

    def tick(self, instance: Instance, now: Seconds) -> Decision:
        """Choose the clock of one instance; `instance` carries the decision's headroom afterwards."""
        steered = self.steered[instance.name]
        state = self.pools[instance.pool]
        self._learn(steered, state, now)
        outlook = self._outlook(steered, state, now)
        objectives = state.queue.rules.objectives
        decision, steered.memory = choose(instance, outlook, objectives, self.governor, steered.memory, now)
        steered.decision = decision
        instance.rise_takes = self.governor.switch if instance.switch is None else instance.switch
        if instance.clock is not None and (decision.clock is None or decision.clock > instance.clock):
            instance.raised_from, instance.raised_at = instance.clock, now
        instance.at_clock, instance.at_max = decision.at_clock, decision.at_max
        if decision.prompt_rate is not None:
            tightest = min(state.queue.rules.objectives.ttft)
            instance.prompt_rate = decision.prompt_rate
            instance.prompt_window = self.admission.prompt_window * tightest * decision.prompt_rate
        return decision

    def _arrived(self, flight: Flight, pool: str, now: Seconds) -> PoolState:
        state = self.pools[pool]
        chunks = flight.uncached_tokens // state.chunk
        state.arrivals.add(flight.uncached_tokens, flight.output_q50, now, chunks)
        state.queue.tenants.arrived(flight.tenant, now)
        return state

    def _of(self, pool: str) -> list[Instance]:
        return [s.instance for s in self.steered.values() if s.instance.pool == pool and s.instance.ready]

    def _outlook(self, steered: Steered, state: PoolState, now: Seconds) -> Outlook:
        ranks = self._ranks(state, now)
        peers, rank = max(1, len(ranks)), ranks.get(steered.instance.name, 0)
        if steered.floor is None or now - steered.floor.at >= FLOOR_EVERY:
            self._look_at_load(steered, state, peers, now)
        floor, full_chunks = steered.floor, state.arrivals.full_chunks(now) / peers
        state.queue.apart = self._keeps_apart(state, full_chunks, peers)
        return Outlook(
            floor=floor.clock if floor is not None else None,
            full_chunks=full_chunks,
            prompt_share=floor.prompts if floor is not None else 0.0,
            queued=state.queue.every(peers, rank),
            short=state.prices.short_output,
            credit=state.prices.credit >= 0.0,
        )

    def _keeps_apart(self, state: PoolState, full_chunks: float, peers: int) -> bool:
        """Whether prompts may make streams pause too often, and some could be spared."""
        queue = state.queue
        frequent = full_chunks * queue.rules.objectives.tpot >= STALL_SHARE  # a step takes no longer
        few = queue.tenants.total < FEW * peers
        return frequent and few and SPARED <= peers <= MANY and self.share >= 1.0

    def _ranks(self, state: PoolState, now: Seconds) -> Mapping[str, int]:
        """The pool's instances in rotation, numbered; looked up once for all decisions of a moment."""
        age = now - state.ranked_at
        if age >= RANKED_FOR or (age != 0.0 and state.instances <= MANY):
            state.ranked_at = now
            peers = self._of(state.queue.rules.name)
            state.ranks = {instance.name: rank for rank, instance in enumerate(peers)}
        return state.ranks

    def _look_at_load(self, steered: Steered, state: PoolState, peers: int, now: Seconds) -> None:
        """The floor of the load, with the share of it that this instance gets."""
        model, limits = steered.instance.model, steered.instance.limits
        whole = state.demand(now)
        if model is None or whole is None:
            return
        prices, factor = state.prices, steered.instance.correction
        if state.floor is not None and state.floor.fits(steered.instance, now):
            steered.floor = state.floor
            return
        per_step = steered.instance.tokens_per_step
        demand = in_steps(replace(whole, rate=whole.rate / peers), per_step)
        if prices.start is None:
            if state.arrivals.age(now) < LOAD_KNOWN:
                return  # no floor yet: maximum clock
            price = going_price(model, demand, limits.chunk_budget, FIRST_STRETCH, factor)
            prices.start = max(price, LEAST_PRICE * model.watts(Batch(1), model.clocks[-1]))
        near = steered.floor.clock if steered.floor is not None else None
        clock = cheapest(model, demand, limits.chunk_budget, prices.price, factor, near)
        prompts = settle(model, demand, clock, limits.chunk_budget, factor).prompts
        steered.floor = state.floor = Floor(model, limits.chunk_budget, factor, per_step, now, clock, prompts)

    def _learn(self, steered: Steered, state: PoolState, now: Seconds) -> None:
        """Feed the twin with what ended, in order of arrival, and the prices with what the twin says."""
        instance, book = steered.instance, steered.instance.book
        if now - steered.learned_at < LEARN_EVERY:
            return
        steered.learned_at = now
        if instance.model is None:
            book.ended.clear()
            return
        twin = _twin(steered, instance.model)
        for flight in book.ended:
            heappush(steered.unordered, (flight.arrived, next(steered.ends), flight))
        book.ended.clear()
        oldest = min([f.arrived for f in book.flights.values()], default=now)
        e2e = state.queue.rules.objectives.e2e
        until = max(oldest, now - (TWIN_PATIENCE if e2e is None else max(TWIN_PATIENCE, ENDS_BY * e2e)))
        while steered.unordered and steered.unordered[0][0] < until:
            arrived, _, flight = heappop(steered.unordered)
            if arrived >= steered.twinned_to:
                steered.twinned_to = arrived
                for twinned in twin.add(flight):
                    state.prices.observe(twinned)


def _twin(steered: Steered, model: EngineModel) -> Twin:
    """The twin of this instance, with what is known of the engine by now."""
    instance, limits = steered.instance, steered.instance.limits
    capacity = inf if limits.kv_capacity is None else KV_SHARE * limits.kv_capacity
    if steered.twin is None:
        steered.twin = Twin(model, limits.chunk_budget, instance.slots, capacity)
    twin = steered.twin
    twin.model, twin.slots, twin.capacity = model, instance.slots, capacity
    twin.per_step = instance.tokens_per_step
    return twin
