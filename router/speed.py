"""Pure: what live traffic teaches about one instance's speed and power.

A window of one tick or a few gives one observation: the mean gap between output events of the requests that
stream is the mean iteration time, the counters' joules over the window are the power. It lasts from one tick
at which no prompt is being read to the next: a prompt that is read in several windows would look like
slowness in all but the last. A profiled instance keeps its model, learns a correction, and keeps what a refit
needs should the engine change for good (`router.refit`). One without a profile keeps samples until a model
can be learned from them, and stays at default clocks till then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from control.state import Bands, Instance
from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.latency_data import Row
from predictor.online import Correction, CorrectionSettings
from predictor.online_drift import Drift, DriftDetector, DriftSettings
from predictor.online_model import LearnSettings, learn
from predictor.online_refit import Reach, remembered, rows_of
from predictor.online_samples import Sample, SampleMemory, SampleSettings
from predictor.table import TableModel

LEAST_EVENTS = 8  # of a window, to learn from it
LONGEST_WINDOW = 2.0  # seconds: where prompts are always being read, what is cut off at its ends is little
FIRST_WINDOWS = 40  # of an instance without a profile, before anything is learned: ten seconds of traffic
RELEARN = 5.0  # seconds between two models of it
STEADY = 0.25  # of the batch: how far it may have moved within a window that is remembered
ERROR_RATIOS = (0.02, 0.25)  # of the model, as the governor is told: windows of live traffic are noisy
OUTSIDE_GAIN = 0.02  # of an observation, in the share that lies outside what the model was trained on
LONGEST_CONTEXT = 100_000.0  # tokens read per step that a refit covers where the engine's capacity is unknown


@dataclass(slots=True)
class Window:
    """What one instance was seen to do since the window began."""

    gaps: float = 0.0  # seconds between output events, summed over the requests that stream
    events: int = 0  # as many gaps
    prompts: list[int] = field(default_factory=list)  # uncached tokens of the prompts that were finished
    joules: float = 0.0  # of one GPU, on average
    since: Seconds = Seconds(0.0)
    clock: MegaHertz | None = None  # at its start
    torn: bool = False  # a prompt was being read when it began


@dataclass(slots=True)
class Refits:
    """What became of learning an engine anew."""

    done: int = 0
    failed: int = 0
    problem: str = ""  # of the last one; empty: none
    at: Seconds = Seconds(0.0)  # of the last one, or when counting began
    kept: Path | None = None  # where its model is written
    restored: bool = False  # the model of an earlier one was found there


class Speed:
    """One instance's. `profiled`: its model is given, and only corrected."""

    def __init__(self, model: EngineModel | None) -> None:
        self.profiled = model is not None
        self.window = Window()
        self.correction: Correction | None = None
        self.drift = DriftDetector(DriftSettings())
        self.drifting = Drift.NONE
        self.outside = 0.0  # share of recent work that the model was not trained on
        self.refits = Refits()
        self._memory: SampleMemory | None = None
        self._clocks: tuple[MegaHertz, ...] = ()
        self._idle = float("inf")  # least watts seen
        self._learned = float("-inf")
        if model is not None:
            self.correction = _correction_of(model)
            self._memory = SampleMemory(model.clocks, SampleSettings())

    @property
    def samples(self) -> int:
        """Windows remembered."""
        return 0 if self._memory is None else len(self._memory)

    def knows_clocks(self, clocks: Sequence[MegaHertz]) -> None:
        """What the agent says the GPU supports; needed where no profile says it."""
        if not self.profiled and self._memory is None and clocks:
            self._clocks = tuple(sorted(clocks))
            self._memory = SampleMemory(self._clocks, SampleSettings())

    def tick(self, law: Instance, now: Seconds) -> None:
        """Learn from the window that ends, and start the next. Sets `law.correction`, or a model learned."""
        seen, clock = self.window, self._clock(law)
        reading, young = bool(law.book.prompts), now - seen.since < LONGEST_WINDOW
        if reading and young and seen.clock == clock:
            return
        self.window = Window(since=now, clock=clock, torn=reading)
        if clock is None:
            return
        whole = not (young and (reading or seen.torn)) and seen.since
        if law.telemetry_at is not None and seen.clock == clock and whole:
            self._observe(law, seen, clock, now)
        if not self.profiled and self._memory is not None and self._memory.seen >= FIRST_WINDOWS:
            self._learn(law, self._memory, now)
        if self.correction is not None:
            low, high = ERROR_RATIOS
            law.correction = self.correction.factor(clock)
            law.bands = Bands(self.correction.borders, self.correction.factors)
            law.model_error = min(high, max(low, self.correction.error_p95))

    def lessons(self, law: Instance) -> Callable[[], list[Row]]:
        """What a refit of a profiled instance learns from; to be called in a thread, it takes a while."""
        model, correction, samples = law.model, self.correction, list(self._memory or ())
        assert model is not None
        assert correction is not None
        reach = Reach(law.slots, law.limits.kv_capacity or LONGEST_CONTEXT, law.limits.chunk_budget)
        if isinstance(model, TableModel):
            reach = _trained(model, reach)
        return lambda: [*remembered(model, correction, reach, samples), *rows_of(samples)]

    def adopt(self, law: Instance, model: EngineModel) -> None:
        """Serve with `model`, which has learned what the correction knew."""
        law.model = model
        law.correction, law.bands = 1.0, None
        self.correction = _correction_of(model)
        self.drift.reset()
        self.drifting = Drift.NONE
        self.outside = 0.0

    def _clock(self, law: Instance) -> MegaHertz | None:
        """The ceiling in force; without one the highest clock there is."""
        if law.clock is not None:
            return law.clock
        clocks = law.model.clocks if law.model is not None else self._clocks
        return clocks[-1] if clocks else None

    def _observe(self, law: Instance, seen: Window, clock: MegaHertz, now: Seconds) -> None:
        length = now - seen.since
        if length <= 0.0:
            return
        watts = Watts(seen.joules / length) if seen.joules > 0.0 else None
        if watts is not None:
            self._idle = min(self._idle, watts)
        if seen.events < LEAST_EVENTS:
            return
        observed = Seconds(seen.gaps / seen.events)
        batch = Batch(law.book.decoding, max(0.0, law.book.context))
        steady = abs(seen.gaps / length - batch.decoding) <= STEADY * batch.decoding
        iterations = max(1.0, length / observed)
        work = replace(batch, prefill_tokens=round(sum(seen.prompts) / iterations))
        sample = Sample(work, float(clock), observed, watts if steady else None, now)
        if law.model is not None and self.correction is not None:
            predicted = mean_iteration(law.model, batch, seen.prompts, length, observed, clock)
            self.correction.observe(predicted, observed, clock)
            self._watch(law.model, batch, predicted, observed, now)
            if self.profiled:  # as if the prompts of the window had not been: the model knows their share
                plain = law.model.iteration_time(batch, clock) * observed / predicted
                sample = replace(sample, batch=batch, seconds=Seconds(plain))
        if self._memory is not None and (steady or not self.profiled):
            self._memory.add(sample)

    def _watch(
        self, model: EngineModel, batch: Batch, predicted: Seconds, observed: Seconds, now: Seconds
    ) -> None:
        """Is this still the engine that the model learned?"""
        before, self.drifting = self.drifting, self.drift.observe(predicted, observed, now)
        if before is Drift.NONE and self.drifting is not Drift.NONE and self._memory is not None:
            self._memory.forget_before(self.drift.since)
        foreign = isinstance(model, TableModel) and not model.covers(batch)
        self.outside += OUTSIDE_GAIN * (foreign - self.outside)

    def _learn(self, law: Instance, memory: SampleMemory, now: Seconds) -> None:
        if now - self._learned < RELEARN:
            return
        self._learned = now
        idle = Watts(self._idle if self._idle < float("inf") else 0.0)
        model = learn(memory, self._clocks, idle, LearnSettings())
        if model is not None:
            law.model = model
            known = self.correction.error_p95 if self.correction is not None else None
            self.correction = _correction_of(model, known)


def _correction_of(model: EngineModel, error: float | None = None) -> Correction:
    """One that knows nothing yet but how wrong the model is: `error`, or what it says of itself."""
    settings = CorrectionSettings()
    if error is None and isinstance(model, TableModel):
        error = model.trained.time_error_p95
    return Correction(model.clocks, settings if error is None else replace(settings, first_error=error))


def _trained(model: TableModel, reach: Reach) -> Reach:
    """`reach` as far as the model has seen work like it."""
    tops = {name: top for name, (_, top) in model.trained.ranges.items()}
    return Reach(
        batch=min(reach.batch, int(tops["batch"])),
        context_tokens=min(reach.context_tokens, tops["context_tokens"]),
        prompt_tokens=min(reach.prompt_tokens, int(tops["prefill_tokens"])),
    )


def mean_iteration(
    model: EngineModel,
    batch: Batch,
    prompts: Sequence[int],
    window: float,
    observed: Seconds,
    clock: MegaHertz,
) -> Seconds:
    """Seconds an iteration should have taken on average, over `window` seconds with `prompts` prefilled.

    There were window/observed iterations; each prompt made one of them longer.
    """
    plain = model.iteration_time(batch, clock)
    extra = 0.0
    for tokens in prompts:
        with_prompt = Batch(batch.decoding, batch.context_tokens, tokens, 0.5 * tokens * tokens)
        extra += model.iteration_time(with_prompt, clock) - plain
    return Seconds(plain + extra * observed / window) if window > 0 else plain
