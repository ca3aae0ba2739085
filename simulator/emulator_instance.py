"""Shell: one emulated engine in real time: `simulator.engine` one iteration after the other, tokens when due.

The timeline is virtual and absolute: an iteration starts where the last one ended, however late this process
was in publishing it, so lateness never adds up. It is recorded for every token; a run with much of it is
void. A token is published at most EARLY before it is due: timers of the event loop have a resolution of 1 ms.

Clock and power cap come from the plant and the energy goes to it: the slowest GPU of the instance counts,
each one draws its share. A board that would draw more than its cap steps its clock down, as at its limit. A
request is in the engine from the next start of an iteration on.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpu_agent.plant import PlantGpu
from joulegate.engine_profile import EngineProfile
from joulegate.units import Joules, MegaHertz, Seconds, Watts
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.histogram import Histogram
from simulator.jobs import Job

EARLY = 0.0005
GPU_IDLE, POWER_CAP = 0x1, 0x4  # NVML clock-event reasons
LATENESS_BOUNDS = tuple(0.0002 * 1.05**k for k in range(200))  # 0.2 ms to 3.3 s, 5 % wide
SECONDS_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
LONG_BOUNDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
ITL_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_BOUNDS = tuple(float(m * 10**e) for e in range(5) for m in (1, 2, 5))


class Sink(Protocol):
    """Where the tokens of one sequence go."""

    def token(self, count: int, last: bool) -> None:
        """The `count`-th output token is out."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class LiveJob(Job):
    sink: Sink
    submitted_at: float
    emitted: int = 0


@dataclass(slots=True)
class Counters:
    """What the engine has done; the dialects render it as metrics."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    requests: int = 0  # sequences that came to their end
    aborted: int = 0
    rejected: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BOUNDS))
    tpot: Histogram = field(default_factory=lambda: Histogram(ITL_BOUNDS))
    queued: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS))
    prefill: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS))
    decode: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS))
    e2e: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS))
    prompt_length: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    output_length: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    lateness: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS))


class LiveEngine:
    """Serves sequences on its GPUs. Needs a running event loop."""

    def __init__(
        self,
        profile: EngineProfile,
        gpus: Sequence[PlantGpu],
        noise: Callable[[], float] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        now = time.monotonic()
        self.profile = profile
        self.counters = Counters()
        self.asleep = False
        self.slowdown = 1.0  # what every iteration takes longer than the profile says
        self._noise = noise
        self._loop = loop
        self._gpus = gpus
        self._before = [gpu.true_energy_at(Seconds(now)) for gpu in gpus]  # a counter never goes back
        costs = EngineCosts(profile)
        for clock in profile.clocks:
            costs.at(clock)  # half a millisecond each: not between two tokens
        self._engine = Engine(costs, profile.max_clock, now, self._factor)
        self._due: float | None = None  # end of the iteration in flight
        self._timer: asyncio.TimerHandle | None = None
        self._held: list[LiveJob] = []  # came while asleep
        self._keys = 0
        self._publish_power(now)

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    @property
    def kv_tokens(self) -> int:
        return self._engine.kv_tokens

    def queue_is_full(self, limit: int | None) -> bool:
        """Whether `limit` sequences wait. One that came since the last iteration began does not wait yet,
        unless the slots are all taken."""
        if limit is None:
            return False
        engine, slots = self._engine, self.profile.engine.max_num_seqs
        return engine.queued >= limit or engine.running + engine.waiting >= slots + limit

    def submit(self, prompt_tokens: int, output_tokens: int, sink: Sink) -> LiveJob:
        now = time.monotonic()
        self._keys += 1
        job = LiveJob(self._keys, prompt_tokens, output_tokens, sink=sink, submitted_at=now)
        if self.asleep:
            self._held.append(job)
        else:
            self._engine.submit(job, now)
            self._start_if_idle(now)
        return job

    def cancel(self, job: LiveJob) -> None:
        """The client has gone."""
        if job.finished_at == job.finished_at:  # not NaN: it had ended already
            return
        self.counters.aborted += 1
        if job in self._held:
            self._held.remove(job)
        else:
            self._engine.cancel(job)

    def sleep(self) -> None:
        """Finish the iteration in flight, then stand still; what comes is held back."""
        self.asleep = True

    def wake(self) -> None:
        now = time.monotonic()
        self.asleep = False
        if self._due is None:
            self._engine.stand_still(now)
        for job in self._held:
            self._engine.submit(job, now)
        self._held.clear()
        self._start_if_idle(now)

    def leave(self) -> None:
        """The engine's process ends: its GPUs fall back to the power they have with nobody on them."""
        now = Seconds(time.monotonic())
        for gpu in self._gpus:
            alone = Watts(self.profile.power.p_off_owned_w)
            gpu.publish(now, gpu.true_energy_at(now), alone, self.profile.max_clock, GPU_IDLE)
            gpu.processes = ()

    def energy_of(self, now: float) -> float:
        """Joules of all its GPUs since the plant began."""
        return sum(gpu.true_energy_at(Seconds(now)) for gpu in self._gpus)

    # -- iterations

    def _factor(self) -> float:
        """On the time of one iteration."""
        return self.slowdown if self._noise is None else self.slowdown * self._noise()

    def _start_if_idle(self, now: float) -> None:
        if self._due is None:
            self._begin(now)
            self._schedule()

    def _tick(self) -> None:
        self._timer = None
        while self._due is not None and self._due <= time.monotonic() + EARLY:
            due = self._due
            self._deliver(due)
            self._begin(due)
        self._schedule()

    def _schedule(self) -> None:
        if self._due is not None and self._timer is None:
            delay = max(0.001, self._due - time.monotonic())
            self._timer = self._loop.call_later(delay, self._tick)

    def _begin(self, now: float) -> None:
        """Start the next iteration, at `now` or where the last one ended."""
        clock = min(gpu.clock_at(Seconds(now)) for gpu in self._gpus)
        self._engine.apply_clock(clock, min(gpu.cap for gpu in self._gpus))
        self._due = None if self.asleep else self._engine.begin(now)
        if self._due is None and self._engine.waiting and not self.asleep:
            # this process is late: what has come meanwhile came after the last iteration had ended
            self._due = self._engine.begin(time.monotonic())
        self._publish_power(self._engine.now)

    def _publish_power(self, now: float) -> None:
        engine, share = self._engine, 1.0 / len(self._gpus)
        busy = self._due is not None
        clock = MegaHertz(int(engine.board_clock) if busy else self.profile.max_clock)
        capped = POWER_CAP if engine.board_clock < engine.clock else 0
        for gpu, before in zip(self._gpus, self._before, strict=True):
            gpu.publish(
                Seconds(now),
                Joules(before + engine.energy * share),
                Watts(engine.watts * share),
                clock,
                capped if busy else GPU_IDLE,
            )

    def _deliver(self, due: float) -> None:
        """End the iteration in flight and hand its tokens out."""
        engine, counters = self._engine, self.counters
        producers = engine.producers()
        iteration = due - engine.now
        events = engine.complete()
        old = len(producers) - len(events.first_tokens)
        if old:
            counters.itl.observe(iteration, old)
        tokens = 0
        for job in producers:
            assert isinstance(job, LiveJob)
            if job.admission >= 0 or job.finished_at == due:  # else cancelled in this iteration
                tokens += 1
                job.emitted += 1
                job.sink.token(job.emitted, job.emitted == job.output_tokens)
        counters.output_tokens += tokens
        counters.preemptions += len(events.preempted)
        if tokens:
            counters.lateness.observe(max(0.0, time.monotonic() - due), tokens)
        for job in events.first_tokens:
            assert isinstance(job, LiveJob)
            counters.prompt_tokens += job.prompt_tokens
            counters.ttft.observe(due - job.submitted_at)
        for job in events.finished:
            assert isinstance(job, LiveJob)
            self._count_finished(job)

    def _count_finished(self, job: LiveJob) -> None:
        counters = self.counters
        counters.requests += 1
        counters.e2e.observe(job.finished_at - job.submitted_at)
        counters.queued.observe(max(0.0, job.admitted_at - job.submitted_at))
        counters.prefill.observe(job.first_token_at - job.admitted_at)
        counters.decode.observe(job.finished_at - job.first_token_at)
        counters.prompt_length.observe(job.prompt_tokens)
        counters.output_length.observe(job.output_tokens)
        if job.output_tokens > 1:
            counters.tpot.observe((job.finished_at - job.first_token_at) / (job.output_tokens - 1))
