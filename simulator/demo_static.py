"""Pure: what the best static clock would have saved on the same arrivals, in simulated time.

The line beside the demo's result: a governor is worth only what it saves over one fixed clock, chosen in
hindsight. Requests go to the pool of their true type and there to the instance with the fewest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from joulegate.domain import Cuts, Objectives, RequestType
from joulegate.engine_profile import EngineProfile
from joulegate.units import MegaHertz, Seconds
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.jobs import Job

Arrival = tuple[float, int, int]  # seconds from the start, input tokens, output tokens
TOLERATED = 0.005  # attainment a static clock may lose against maximum clock
EVERY = 3  # every third supported clock is tried


@dataclass(frozen=True, slots=True)
class StaticClock:
    """A fleet at one clock. `saved_ratio` against the same fleet at maximum clock."""

    clock: MegaHertz
    saved_ratio: float
    attainment_ratio: float


@dataclass(frozen=True, slots=True)
class _Run:
    joules: float
    attainment: float
    e2e: float  # median, seconds


def best_static(
    profile: EngineProfile,
    arrivals: Sequence[Arrival],
    pool_of: Mapping[str, str],
    per_pool: int,
    objectives: Objectives,
    cuts: Cuts,
) -> StaticClock:
    """The clock with the least energy under the same promises: attainment, and `max_slowdown` of median E2E.

    `pool_of`: type name -> pool.
    """
    costs = EngineCosts(profile)
    top = profile.max_clock
    fleet = _Fleet(costs, arrivals, pool_of, per_pool, objectives, cuts)
    reference = fleet.run(top)
    best = StaticClock(top, 0.0, reference.attainment)
    for clock in profile.clocks[::EVERY]:
        run = fleet.run(clock)
        saved = 1.0 - run.joules / reference.joules if reference.joules else 0.0
        slowdown = run.e2e / reference.e2e if reference.e2e else 1.0
        kept = run.attainment >= reference.attainment - TOLERATED
        if kept and saved > best.saved_ratio and slowdown <= (objectives.max_slowdown or slowdown):
            best = StaticClock(clock, saved, run.attainment)
    return best


@dataclass(frozen=True, slots=True)
class _Fleet:
    costs: EngineCosts
    arrivals: Sequence[Arrival]
    pool_of: Mapping[str, str]
    per_pool: int
    objectives: Objectives
    cuts: Cuts

    def run(self, clock: MegaHertz) -> _Run:
        """All arrivals at `clock`; energy from the first arrival to the end of the last request."""
        pools = {
            name: [Engine(self.costs, clock) for _ in range(self.per_pool)]
            for name in sorted(set(self.pool_of.values()))
        }
        jobs: list[tuple[float, Job]] = []
        for number, (at, prompt, output) in enumerate(self.arrivals):
            engines = pools[self.pool_of[self._type(prompt, output).name]]
            for engine in engines:
                engine.advance(at)
            job = Job(number, prompt, output)
            min(engines, key=lambda e: e.running + e.waiting).submit(job, at)
            jobs.append((at, job))
        every = [engine for engines in pools.values() for engine in engines]
        end = max((_drained(engine) for engine in every), default=0.0)
        for engine in every:
            engine.advance(end)
        met = sum(self._met(at, job) for at, job in jobs)
        times = [job.finished_at - at for at, job in jobs]
        joules = sum(engine.energy for engine in every)
        return _Run(joules, met / len(jobs) if jobs else 1.0, median(times) if times else 0.0)

    def _type(self, prompt: int, output: int) -> RequestType:
        return RequestType(self.cuts.input_size(prompt), self.cuts.output_size(output))

    def _met(self, at: float, job: Job) -> bool:
        tpot = (job.finished_at - job.first_token_at) / max(1, job.output_tokens - 1)
        promised = self.objectives.ttft[self.cuts.input_size(job.prompt_tokens)]
        return job.first_token_at - at <= promised and tpot <= self.objectives.tpot


def _drained(engine: Engine) -> Seconds:
    """Work everything off; when the last request ended."""
    last = engine.now
    while engine.running or engine.waiting:
        for job in engine.advance(engine.now + 60.0).finished:
            last = max(last, job.finished_at)
    return Seconds(last)
