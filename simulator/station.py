"""Pure: one simulated instance: the exact engine, and what the control laws are told about it."""

from collections.abc import Iterator

from control.state import Flight, Gauges, Instance, Limits, LoadBook
from joulegate.engine_profile import EngineProfile
from joulegate.units import MegaHertz, Seconds
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.histogram import Histogram
from simulator.jobs import Events, Job
from simulator.results import bucket_bounds

BIN = 10.0  # seconds of the power and instance timelines


class GapEngine(Engine):
    """The engine, with a histogram of the time between two tokens of a sequence."""

    def __init__(self, costs: EngineCosts, clock: float, now: float) -> None:
        super().__init__(costs, clock, now)
        self.gaps = Histogram(bucket_bounds())
        self._tokens_at = now

    def _count_steps(self, steps: int) -> None:
        batch = len(self._ends)
        if batch and self._time > self._tokens_at:
            self.gaps.observe((self._time - self._tokens_at) / steps, steps * batch)
        self._tokens_at = self._time
        super()._count_steps(steps)


class Station:
    """An engine with its scoreboard. `telemetry` is always fresh: the simulated agent never dies."""

    def __init__(self, name: str, pool: str, costs: EngineCosts, now: float) -> None:
        profile = costs.profile
        self.profile: EngineProfile = profile
        self.engine = GapEngine(costs, profile.max_clock, now)
        self.started = now
        self.law = Instance(
            name=name,
            pool=pool,
            book=LoadBook(),
            limits=limits_of(profile),
            model=costs.model,
            slots=profile.engine.max_num_seqs,
            clock=profile.max_clock,
            telemetry_at=Seconds(now),
            tp=profile.tp,
        )
        self.jobs: dict[int, tuple[Job, Flight]] = {}
        self.changes = 0
        self.residency: dict[int, float] = {}
        self._clock_at = now
        self._looked = 0  # step of the engine at the last look
        self.quiet_until = float("inf")  # nothing to see before
        self.shared = False  # others use the engine too

    def send(self, job: Job, flight: Flight, now: float) -> None:
        """The request's bytes leave for the engine; the scoreboard was told by admission."""
        self.engine.advance(now)  # nothing to see: whoever sends has advanced what had news
        self.jobs[job.key] = (job, flight)
        self.engine.submit(job, now)

    def recall(self, flight: Flight) -> None:
        """The gateway gives up on a request that is not answered yet: the engine sees its client go."""
        job, _ = self.jobs.pop(int(flight.id))
        self.engine.cancel(job)
        self.law.book.close(flight)

    def take_from_elsewhere(self, job: Job, now: float) -> None:
        """A request that did not come through the gateway: only the engine's own gauges show it."""
        self.engine.advance(now)
        self.engine.submit(job, now)
        self.shared = True

    def advance(self, now: float) -> Events:
        """Run the engine to `now` and put what its streams would have shown on the scoreboard."""
        events = self.engine.advance(now)
        book = self.law.book
        if events.first_tokens:
            self.law.suspect = False  # it moves
        for job in events.first_tokens:
            ours = self.jobs.get(job.key)
            if ours is not None and ours[1].first_token is None:
                book.progress(ours[1], 1.0, Seconds(job.first_token_at))
        for job in events.finished:
            ours = self.jobs.pop(job.key, None)
            if ours is None:
                continue
            flight = ours[1]
            looked = job.output_tokens - (job.last_step - self._looked)  # tokens it had at the last look
            flight.tokens_out = min(float(job.output_tokens), max(flight.tokens_out, float(looked)))
            book.progress(flight, job.output_tokens - flight.tokens_out, Seconds(job.finished_at))
            book.close(flight)
        return events

    def look(self, now: float, one_by_one: bool) -> None:
        """Tokens that have streamed since the last look; request by request only where somebody asks."""
        book = self.law.book
        context: float = self.engine.context_tokens
        if one_by_one or self.shared or book.decoding != self.engine.decoding:
            context = sum(self._walk(), 0.0)
        book.held += context - book.context
        book.context = context
        self._looked = self.engine.step
        self.law.telemetry_at = Seconds(now)
        if self.shared:
            self.law.gauges = Gauges(self.engine.running, self.engine.waiting, Seconds(now))

    def _walk(self) -> Iterator[float]:
        """Context of every request that decodes, its tokens counted."""
        for job, flight in self.jobs.values():
            if flight.first_token is not None:
                flight.tokens_out = max(flight.tokens_out, float(self.engine.generated(job)))
                yield flight.input_tokens + flight.tokens_out

    def set_clock(self, clock: MegaHertz | None, now: float) -> bool:
        """What the agent does with a target; None: no ceiling. False: it is in force already."""
        wanted = clock if clock is not None else self.profile.max_clock
        if wanted == self.law.clock:
            return False
        self.settle(now)
        self.engine.set_clock(wanted, now)
        self.law.clock = wanted
        self.changes += 1
        return True

    def settle(self, now: float) -> None:
        """Count the time at the clock in force up to `now`."""
        at = int(self.law.clock or self.profile.max_clock)
        self.residency[at] = self.residency.get(at, 0.0) + now - self._clock_at
        self._clock_at = now


def limits_of(profile: EngineProfile) -> Limits:
    engine = profile.engine
    return Limits(engine.max_num_seqs, engine.max_num_batched_tokens, engine.kv_capacity_tokens)
