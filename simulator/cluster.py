"""Pure: a fleet in simulated time under one policy: arrivals, the gateway's laws, engines, clocks, energy.

Theory of operation. Time jumps from event to event: an arrival, a control tick (250 ms), or, while requests
wait in the gateway, a short poll in which the gateway learns what its streams brought (`lag`: network and
event loop). Engines run in closed form between events (`simulator.engine`). Everything that decides is the
gateway's own code (`control.steering`); a policy only chooses its rules. The agent's part is the
clock-switch latency of the profile, the dwell and one lowering a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from control.admission import AdmissionRules, Outcome
from control.classify import classify
from control.governor import GovernorRules
from control.state import Flight, PoolRules
from control.steering import PoolState, Steering
from joulegate.domain import Cuts, LengthPredictor, LengthQuery, Objectives, RequestType, Size
from joulegate.units import Seconds
from simulator.costs import EngineCosts
from simulator.histogram import Histogram
from simulator.jobs import Job
from simulator.results import Run, bucket_bounds
from simulator.station import BIN, Station
from simulator.workload import Floats, Load

NEVER = float("inf")
ALL_TYPES = frozenset(RequestType(i, o) for i in Size for o in Size)


@dataclass(frozen=True, slots=True)
class Setup:
    """A fleet and its promise."""

    costs: tuple[EngineCosts, ...]  # one for each instance
    objectives: Objectives
    cuts: Cuts = field(default_factory=Cuts)
    tick: float = 0.25
    lag: float = 0.004  # seconds until the gateway acts on what a stream shows


@dataclass(frozen=True, slots=True)
class Laws:
    """How a policy steers. `true_lengths`: it knows output lengths in advance (the oracle)."""

    admission: AdmissionRules
    governor: GovernorRules
    true_lengths: bool = False


@dataclass(slots=True, eq=False)
class Knowledge:
    """What a policy has learned and takes from one run into the next."""

    predictor: LengthPredictor
    pools: dict[str, PoolState] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Timeline:
    """Energy of the fleet read at each BIN."""

    joules: list[float] = field(default_factory=list)
    instances: list[float] = field(default_factory=list)


class Cluster:
    """One policy, one fleet. `run` once."""

    def __init__(self, setup: Setup, laws: Laws, knowledge: Knowledge, rng: Callable[[int], int]) -> None:
        self._setup = setup
        self._laws = laws
        self._knowledge = knowledge
        self._rules = PoolRules("all", setup.objectives, ALL_TYPES)
        self._stations = [Station(f"i{n}", "all", costs, 0.0) for n, costs in enumerate(setup.costs)]
        self._by_name = {station.law.name: station for station in self._stations}
        governed = [station.law for station in self._stations]
        self._steering = Steering([self._rules], governed, laws.admission, laws.governor, rng)
        self._steering.resume(knowledge.pools)
        self._jobs: list[Job] = []
        self._flights: dict[int, tuple[Flight, LengthQuery]] = {}
        self._timeline = _Timeline()
        self._open = 0

    def run(self, load: Load) -> Run:
        """Serve the whole load; ends with its last request."""
        self._jobs = [
            Job(n, max(1, int(i)), max(1, int(o)))
            for n, (i, o) in enumerate(zip(load.input.tolist(), load.output.tolist(), strict=True))
        ]
        times = load.at.tolist()
        self._open, count, arrived = len(times), len(times), 0
        tick, poll = 0.0, NEVER
        while self._open:
            arrival = times[arrived] if arrived < count else NEVER
            now = min(arrival, tick, poll)
            moved = self._advance(now)
            if arrival <= now:
                self._arrive(arrived, now)
                arrived += 1
            elif moved or tick <= now:
                self._assign(self._steering.assign(Seconds(now)), now)
            if tick <= now:
                self._tick(now)
                tick += self._setup.tick
            poll = now + self._setup.lag if self._steering.queued else NEVER
        self._knowledge.pools = self._steering.pools
        return self._result(load)

    def _advance(self, now: float) -> bool:
        """Engines to `now`; True if something freed room."""
        moved = False
        for station in self._stations:
            events = station.advance(now)
            for job in events.finished:
                self._learn(job)
            moved = moved or bool(events.first_tokens or events.finished)
        return moved

    def _learn(self, job: Job) -> None:
        self._open -= 1
        _, query = self._flights.pop(job.key)
        if not self._laws.true_lengths:
            predictor = self._knowledge.predictor
            predictor.observe(query, predictor.predict(query), job.output_tokens)

    def _arrive(self, key: int, now: float) -> None:
        job = self._jobs[key]
        query = LengthQuery(model="m", key="", input_tokens=job.prompt_tokens)
        flight = self._flight(job, query, now)
        self._flights[key] = (flight, query)
        self._assign(self._steering.arrive(flight, "all", Seconds(now)), now)
        for station in self._stations:
            if self._steering.exceeded(station.law):  # clocks step up at once
                self._decide(station, now)

    def _flight(self, job: Job, query: LengthQuery, now: float) -> Flight:
        objectives, cuts = self._setup.objectives, self._setup.cuts
        if self._laws.true_lengths:
            q50 = q90 = float(job.output_tokens)
            kind = RequestType(cuts.input_size(job.prompt_tokens), cuts.output_size(job.output_tokens))
        else:
            prediction = self._knowledge.predictor.predict(query)
            q50, q90 = prediction.q50, prediction.q90
            kind = classify(job.prompt_tokens, prediction, cuts)
        return Flight(
            id=str(job.key),
            type=kind,
            input_tokens=job.prompt_tokens,
            uncached_tokens=job.prompt_tokens,
            output_q50=q50,
            output_q90=q90,
            arrived=Seconds(now),
            ttft=objectives.ttft[kind.input],
            tpot=objectives.tpot,
            e2e=objectives.e2e,
        )

    def _assign(self, outcome: Outcome, now: float) -> None:
        """Send what was granted."""
        for grant in outcome.grants:
            key = int(grant.flight.id)
            self._by_name[grant.instance.name].send(self._jobs[key], grant.flight, now)
        for reject in outcome.rejects:
            self._flights.pop(int(reject.flight.id))
            self._open -= 1

    def _tick(self, now: float) -> None:
        for station in self._stations:
            station.look(now)
            self._decide(station, now)
        if now >= BIN * len(self._timeline.joules):
            self._timeline.joules.append(sum(float(s.engine.energy) for s in self._stations))
            self._timeline.instances.append(float(len(self._stations)))

    def _decide(self, station: Station, now: float) -> None:
        decision = self._steering.tick(station.law, Seconds(now))
        station.set_clock(decision.clock, now)

    def _result(self, load: Load) -> Run:
        ended = [job.finished_at for job in self._jobs if job.finished_at == job.finished_at]
        return measured(load, self._jobs, self._stations, max(ended, default=0.0), self._timeline.joules)


def measured(
    load: Load, jobs: Sequence[Job], stations: Sequence[Station], end: float, joules: Sequence[float]
) -> Run:
    """The result of a run over stations that were on from zero to `end`."""
    first = np.array([job.first_token_at for job in jobs])
    last = np.array([job.finished_at for job in jobs])
    output = np.array([job.output_tokens for job in jobs], dtype=np.int64)
    unserved = np.isnan(last)
    steps = np.maximum(1, output - 1)
    gaps, residency = Histogram(bucket_bounds()), dict[int, float]()
    for station in stations:
        station.settle(end)
        gaps.add(station.engine.gaps)
        for clock, seconds in station.residency.items():
            residency[clock] = residency.get(clock, 0.0) + seconds
    spent = sum(float(station.engine.energy) for station in stations)
    gpus = float(sum(station.profile.tp for station in stations))
    return Run(
        input=load.input,
        output=output,
        ttft=np.where(unserved, np.inf, first - load.at),
        tpot=np.where(unserved, np.inf, np.where(output > 1, (last - first) / steps, 0.0)),
        e2e=np.where(unserved, np.inf, last - load.at),
        gaps=gaps,
        joules_released=spent,
        joules_owned=spent,
        span=end,
        gpus_avg=gpus,
        clock_changes=sum(station.changes for station in stations),
        residency=residency,
        watts=_watts(joules),
        instances=np.full(max(0, len(joules) - 1), float(len(stations))),
    )


def _watts(joules: Sequence[float]) -> Floats:
    return np.diff(np.array(joules, dtype=np.float64)) / BIN


def run_fixed(load: Load, setup: Setup, clock: float) -> Run:
    """One instance at one clock, everything sent on arrival: no gateway at all."""
    station = Station("i0", "all", setup.costs[0], 0.0)
    engine = station.engine
    engine.apply_clock(clock)
    jobs = [
        Job(n, max(1, int(i)), max(1, int(o)))
        for n, (i, o) in enumerate(zip(load.input.tolist(), load.output.tolist(), strict=True))
    ]
    for job, at in zip(jobs, load.at.tolist(), strict=True):
        engine.submit(job, at)
    joules, now, left = [0.0], 0.0, len(jobs)
    while left:
        now += BIN
        left -= len(engine.advance(now).finished)
        joules.append(float(engine.energy))
    end = max((job.finished_at for job in jobs), default=0.0)
    idle = (now - end) * setup.costs[0].idle_watts  # the last bin ran on after the last request
    run = measured(load, jobs, [station], end, joules)
    return _without(run, idle, round(clock))


def _without(run: Run, joules: float, clock: int) -> Run:
    spent = run.joules_released - joules
    return replace(run, joules_released=spent, joules_owned=spent, residency={clock: run.span})
