"""Pure: a fleet in simulated time under one policy: arrivals, the gateway's laws, engines, clocks, energy.

Theory of operation. Time jumps from event to event: an arrival, a control tick (250 ms), or, while requests
wait in the gateway, a short poll in which the gateway learns what its streams brought (`lag`: network and
event loop). Engines run in closed form between events (`simulator.engine`). Everything that decides is the
gateway's own code (`control.steering`); a policy only chooses its rules. The agent's part is the
clock-switch latency of the profile, the dwell and one lowering a second.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import floor

from control.admission import AdmissionRules, Outcome
from control.classify import classify, pool_for
from control.emergency import relieve
from control.governor import GovernorRules
from control.labels import served
from control.planner import BORDERS
from control.state import Flight, PoolRules
from control.steering import PoolState, Steering
from joulegate.domain import (
    Cuts,
    LengthPrediction,
    LengthPredictor,
    LengthQuery,
    Objectives,
    RequestType,
    Size,
)
from joulegate.units import MegaHertz, Seconds
from simulator.costs import EngineCosts
from simulator.jobs import Job
from simulator.least_loaded import LeastLoaded
from simulator.results import Run
from simulator.roll import Roll
from simulator.scaling import Planned, Planning, Scaling
from simulator.score import Scorer
from simulator.sites import ONE_POOL, Sites, Standing
from simulator.station import BIN, Station
from simulator.workload import Foresight, Stream

ENDED = 1000  # requests whose lengths are held against what was predicted
MAX_LAGS = 4.0
KV_NEAR = 0.9  # share of the cache; the governor projects it from a little above on
IDLE = 60.0  # seconds without work after which nothing that is remembered moves any more
NEVER = float("inf")
ALL_TYPES = frozenset(RequestType(i, o) for i in Size for o in Size)


@dataclass(frozen=True, slots=True)
class Setup:
    """A fleet and its promise."""

    costs: tuple[EngineCosts, ...]  # one for each instance
    objectives: Objectives
    border: str = "one"  # which types share a pool: one of `control.planner.BORDERS`
    places: tuple[str, ...] = ()  # pool of each instance; empty: there is one
    cuts: Cuts = field(default_factory=Cuts)
    tick: float = 0.25
    lag: float = 0.004  # seconds until the gateway acts on what a stream shows
    owned_gpus: float | None = None  # GPUs that are paid for, on or off
    bypass: int = 0  # one request in so many goes to an engine without the gateway; 0: none does
    cache_seen: bool = True  # the gateway knows what is in the engine's prefix cache


@dataclass(frozen=True, slots=True)
class Laws:
    """How a policy steers. `true_lengths`: it knows lengths and arrivals in advance (the oracle)."""

    admission: AdmissionRules
    governor: GovernorRules
    true_lengths: bool = False
    scaling: Scaling | None = None


@dataclass(slots=True, eq=False)
class Knowledge:
    """What a policy has learned and takes from one run into the next."""

    predictor: LengthPredictor
    pools: dict[str, PoolState] = field(default_factory=dict)
    planned: Planned = field(default_factory=Planned)  # where instances come and go
    lengths: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=ENDED)
    )  # came, predicted


class Cluster:
    """One policy, one fleet. `run` once."""

    def __init__(self, setup: Setup, laws: Laws, knowledge: Knowledge, rng: Callable[[int], int]) -> None:
        self._setup = setup
        self._laws = laws
        self._knowledge = knowledge
        planned, homes = knowledge.planned, pools_of(setup)
        self._sites = Sites(planned.standing or fleet_of(setup, laws.scaling))
        self._by_name = {station.law.name: station for station in self._sites.stations}
        governed = [station.law for station in self._sites.stations]
        rules = served(homes, planned.merged)
        self._steering = Steering(rules, governed, laws.admission, laws.governor, rng)
        self._steering.resume(knowledge.pools)
        self._planning: Planning | None = None
        if laws.scaling is not None:
            fleet = (self._sites, self._steering)
            self._planning = Planning(laws.scaling, homes, *fleet, planned, knowledge.lengths)
        self._route()
        self._told: dict[int, tuple[LengthQuery, LengthPrediction | None]] = {}
        self._due: list[tuple[float, int, Station]] = []  # heap: when a station has news at the earliest
        self._serial = 0
        self._busy_at = 0.0

    def run(self, load: Stream, scorer: Scorer | None = None) -> Run:
        """Serve the whole load; ends with its last request. `scorer` None: by the objectives of the setup."""
        scorer = scorer or scorer_of(self._setup)
        roll = self._roll = Roll(load, scorer)
        if self._planning is not None and self._laws.true_lengths:
            self._planning.foresight = Foresight(load)
        tick, poll = 0.0, NEVER
        while roll.next_at < NEVER or roll.present:
            arrival = roll.next_at
            now = min(arrival, tick, poll)
            moved = self._advance_all(now) if tick <= now else self._advance(now)
            if arrival <= now:
                self._arrive(roll.enter(), now)
            elif self._steering.queued and (moved or min(tick, poll) <= now):
                self._assign(self._steering.assign(Seconds(now)), now)
            if tick <= now:
                self._tick(now)
                tick = self._next_tick(now, arrival if arrival > now else NEVER)
            poll = self._next_poll(now) if self._steering.queued else NEVER
        self._knowledge.pools = self._steering.pools
        if self._planning is not None:
            self._knowledge.planned.standing = self._sites.standing
        roll.tell()
        return self._sites.result(scorer.score, roll.last_end, self._setup.owned_gpus)

    def _next_tick(self, now: float, arrival: float) -> float:
        """Every tick; after IDLE seconds without work only the last one before the next event."""
        period = self._setup.tick
        if self._told:
            self._busy_at = now
        if now - self._busy_at < IDLE or arrival == NEVER:
            return now + period
        event = min(arrival, self._planning.due) if self._planning is not None else arrival
        return now + period * max(1.0, floor((event - now) / period))

    def _next_poll(self, now: float) -> float:
        """When the gateway looks at its queues again; news of a first token takes MAX_LAGS at most."""
        lag = self._setup.lag
        return min(max(now + lag, self._steering.next_look(Seconds(now))), now + MAX_LAGS * lag)

    def _advance_all(self, now: float) -> bool:
        return any([self._hear(station, now) for station in self._sites.stations])

    def _advance(self, now: float) -> bool:
        """Engines that may have news to `now`; True if something freed room."""
        due, moved, ready = self._due, False, list[Station]()
        while due and due[0][0] <= now:
            quiet, _, station = heappop(due)
            if quiet == station.quiet_until:
                station.quiet_until = NEVER
                ready.append(station)
        for station in ready:
            moved = self._hear(station, now) or moved
        return moved

    def _hear(self, station: Station, now: float) -> bool:
        events = station.advance(now)
        for job in events.finished:
            self._learn(job)
        self._watch(station)
        return bool(events.first_tokens or events.finished)

    def _watch(self, station: Station) -> None:
        """Come back when the station may have news."""
        quiet = station.engine.quiet_until()
        if quiet not in (station.quiet_until, NEVER):
            self._serial += 1
            heappush(self._due, (quiet, self._serial, station))
        station.quiet_until = quiet

    def _learn(self, job: Job) -> None:
        self._roll.strike(job)
        query, prediction = self._told.pop(job.key)
        if prediction is not None:
            self._knowledge.predictor.observe(query, prediction, job.output_tokens)
            self._knowledge.lengths.append((float(job.output_tokens), prediction.q50))

    def _arrive(self, job: Job, now: float) -> None:
        key = job.key
        query = LengthQuery("m", "", job.prompt_tokens)
        if self._setup.bypass and key % self._setup.bypass == 0:
            self._told[key] = query, None
            station = self._sites.stations[key % len(self._sites.stations)]
            station.take_from_elsewhere(job, now)
            self._watch(station)
            return
        prediction = None if self._laws.true_lengths else self._knowledge.predictor.predict(query)
        self._told[key] = query, prediction
        flight = self._flight(job, prediction, now)
        if self._planning is not None:
            self._planning.came(flight)
        self._enter(flight, now)
        if self._steering.queued:
            self._press(now)

    def _enter(self, flight: Flight, now: float) -> None:
        """Into the queue of its pool, or at once to an instance."""
        pool = self._pool[flight.type]
        assert pool is not None, "every type has a pool"
        self._assign(self._steering.arrive(flight, pool.name, Seconds(now)), now)

    def _press(self, now: float) -> None:
        """Requests wait: if the slowest instance must speed up for its share of them, all are asked."""
        stations = self._sites.stations
        slowest = min(stations, key=lambda station: station.law.clock or NEVER)
        if self._steering.exceeded(slowest.law) and self._decide(slowest, now):
            for station in stations:
                if station is not slowest and self._steering.exceeded(station.law):
                    self._decide(station, now)

    def _flight(self, job: Job, prediction: LengthPrediction | None, now: float) -> Flight:
        """`prediction` None: true lengths."""
        objectives, cuts = self._setup.objectives, self._setup.cuts
        if prediction is None:
            q50 = q90 = float(job.output_tokens)
            kind = RequestType(cuts.input_size(job.prompt_tokens), cuts.output_size(job.output_tokens))
        else:
            q50, q90 = prediction.q50, prediction.q90
            kind = classify(job.prompt_tokens, prediction, cuts)
        tokens, cached = job.prompt_tokens, job.prefilled if self._setup.cache_seen else 0
        ttft, tpot, e2e = objectives.ttft[kind.input], objectives.tpot, objectives.e2e
        return Flight(str(job.key), kind, tokens, tokens - cached, q50, q90, Seconds(now), ttft, tpot, e2e)

    def _assign(self, outcome: Outcome, now: float) -> None:
        """Send what was granted."""
        for grant in outcome.grants:
            station = self._by_name[grant.instance.name]
            station.send(self._roll.present[int(grant.flight.id)], grant.flight, now)
            if self._steering.exceeded(station.law):  # clocks step up at once
                self._decide(station, now)
            self._watch(station)
        for reject in outcome.rejects:
            key = int(reject.flight.id)
            self._told.pop(key)
            self._roll.strike(self._roll.present[key])

    def _tick(self, now: float) -> None:
        self._rescale(now)
        for station in self._sites.stations:
            station.look(now, self._one_by_one(station))
            self._decide(station, now)
        for station in self._sites.stations:
            if station.law.book.prompts:
                self._relieve(station, now)
        self._sites.note(now)

    def _relieve(self, station: Station, now: float) -> None:
        """Whom it does not begin to answer in time another takes over, as in `router.rescue`."""
        law = station.law
        tiers = self._steering.places[law.pool]
        others = [other for tier in tiers for other in tier.instances if other is not law]
        for relief in relieve(law, others, shed=False, now=Seconds(now)):
            law.suspect = law.suspect or relief.stuck
            key = int(relief.flight.id)
            station.recall(relief.flight)
            self._watch(station)
            again = self._flight(self._roll.again(key), self._told[key][1], relief.flight.arrived)
            again.avoid = law.name
            self._enter(again, now)

    def _one_by_one(self, station: Station) -> bool:
        """Whether the laws will ask how far each request is: E2E objectives, or a cache near its end."""
        capacity, promised = station.law.limits.kv_capacity, station.law.book.promised
        return self._setup.objectives.e2e is not None or promised > KV_NEAR * (capacity or 0)

    def _decide(self, station: Station, now: float) -> bool:
        """A new clock for one instance; True if it was raised."""
        before = station.law.clock
        decision = self._steering.tick(station.law, Seconds(now))
        changed = self._set_clock(station, decision.clock, now)
        return changed and (station.law.clock or NEVER) > (before or NEVER)

    def _set_clock(self, station: Station, clock: MegaHertz | None, now: float) -> bool:
        """False if it was that already. At another clock a station has news at another time."""
        changed = station.set_clock(clock, now)
        if changed:
            self._watch(station)
        return changed

    def _rescale(self, now: float) -> None:
        """Start or stop instances, as the planner says."""
        came, left = self._sites.step(now)
        for station in came:
            self._steering.join(station.law)
        for station in left:
            self._steering.leave(station.law.name)
        if came or left:
            self._by_name = {station.law.name: station for station in self._sites.stations}
        if self._planning is not None and self._planning.tick(now):
            self._route()

    def _route(self) -> None:
        """The pool of every type: one that is part of another gets no requests."""
        merged = self._knowledge.planned.merged
        rules = [state.queue.rules for name, state in self._steering.pools.items() if name not in merged]
        self._pool = {kind: pool_for(kind, rules) for kind in ALL_TYPES}


class Unsteered:
    """No gateway: every request goes at once to the least loaded instance, clocks are fixed."""

    def __init__(self, setup: Setup, clock: float) -> None:
        self._sites = Sites(map(Standing, setup.costs))
        self._setup = setup
        self._clock = round(clock)
        for station in self._sites.stations:
            station.engine.apply_clock(clock)
            station.law.clock = None if self._clock == station.profile.max_clock else MegaHertz(self._clock)

    def run(self, load: Stream, scorer: Scorer | None = None) -> Run:
        """Serve the whole load; ends with its last request. `scorer` None: by the objectives of the setup."""
        scorer = scorer or scorer_of(self._setup)
        [*_, (now, end)] = self.play(load, scorer)
        run = self._sites.result(scorer.score, end, self._setup.owned_gpus)
        idle = (now - end) * sum(costs.idle_watts for costs in self._setup.costs)
        return replace(run, joules_released=run.joules_released - idle, joules_owned=run.joules_owned - idle)

    def play(self, load: Stream, scorer: Scorer) -> Iterator[tuple[float, float]]:
        """After every BIN of serving, and at the end, all is told: (now, when the last request ended)."""
        roll = Roll(load, scorer)
        fleet = LeastLoaded(self._sites.stations, roll.strike)
        bin_end = now = 0.0
        while roll.next_at < NEVER:
            now = roll.next_at
            while now >= bin_end:
                fleet.advance(bin_end)
                self._sites.note(bin_end)
                bin_end += BIN
                yield now, roll.last_end
            if len(self._sites.stations) > 1:
                fleet.hear(now)
            fleet.send(roll.enter(), now)
        while roll.present:
            now += 1.0
            fleet.advance(now)
        roll.tell()
        yield now, roll.last_end


def scorer_of(setup: Setup) -> Scorer:
    return Scorer(setup.objectives, setup.cuts)


def pools_of(setup: Setup) -> list[PoolRules]:
    """As they are configured, smaller ones first."""
    pools = dict[str, set[RequestType]]()
    for kind in sorted(ALL_TYPES, key=lambda k: (k.input, k.output)):
        pools.setdefault(BORDERS[setup.border](kind), set()).add(kind)
    return [PoolRules(name, setup.objectives, frozenset(kinds)) for name, kinds in pools.items()]


def fleet_of(setup: Setup, scaling: Scaling | None) -> list[Standing]:
    """As it is configured: what `setup` has runs, the rest of what scaling may start does not."""
    pools = setup.places or (ONE_POOL,) * len(setup.costs)
    fleet = [Standing(costs, pool, pool) for costs, pool in zip(setup.costs, pools, strict=True)]
    spare = 0 if scaling is None else scaling.stock.have - len(fleet)
    return fleet + [Standing(setup.costs[0], up=False)] * spare


def run_fixed(load: Stream, setup: Setup, clock: float, scorer: Scorer | None = None) -> Run:
    """The fleet of `setup` at one clock, without a gateway."""
    return Unsteered(setup, clock).run(load, scorer)
