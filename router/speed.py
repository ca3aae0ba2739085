"""Pure: what live traffic teaches about one instance's speed and power.

A tick's window gives one observation: the mean gap between output events of the requests that stream is the
mean iteration time, the counters' joules over the window are the power. A profiled instance keeps its model
and learns a correction; one without a profile keeps samples until a model can be learned from them, and stays
at default clocks until then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from control.state import Instance
from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.online import Correction, CorrectionSettings
from predictor.online_drift import Drift, DriftDetector, DriftSettings
from predictor.online_model import LearnSettings, learn
from predictor.online_samples import Sample, SampleMemory, SampleSettings

LEAST_EVENTS = 8  # of a window, to learn from it
RELEARN = 5.0  # seconds between two models of an instance without a profile


@dataclass(slots=True)
class Window:
    """What one instance was seen to do since the last tick."""

    gaps: float = 0.0  # seconds between output events, summed over the requests that stream
    events: int = 0  # as many gaps
    prompts: list[int] = field(default_factory=list)  # uncached tokens of the prompts that were finished
    joules: float = 0.0  # of one GPU, on average
    since: Seconds = Seconds(0.0)
    clock: MegaHertz | None = None  # at its start


class Speed:
    """One instance's. `profiled`: its model is given, and only corrected."""

    def __init__(self, model: EngineModel | None) -> None:
        self.profiled = model is not None
        self.window = Window()
        self.correction = None if model is None else Correction(model.clocks, CorrectionSettings())
        self.drift = DriftDetector(DriftSettings())
        self.drifting = Drift.NONE
        self._memory: SampleMemory | None = None
        self._clocks: tuple[MegaHertz, ...] = ()
        self._idle = float("inf")  # least watts seen
        self._learned = float("-inf")

    def knows_clocks(self, clocks: Sequence[MegaHertz]) -> None:
        """What the agent says the GPU supports; needed where no profile says it."""
        if not self.profiled and self._memory is None and clocks:
            self._clocks = tuple(sorted(clocks))
            self._memory = SampleMemory(self._clocks, SampleSettings())

    def tick(self, law: Instance, now: Seconds) -> None:
        """Learn from the window that ends, and start the next. Sets `law.correction`, or a model learned."""
        seen, clock = self.window, self._clock(law)
        self.window = Window(since=now, clock=clock)
        if clock is None:
            return
        if law.telemetry_at is not None and seen.clock == clock and seen.since:
            self._observe(law, seen, clock, now)
        if self._memory is not None and now - self._learned >= RELEARN:
            self._learn(law, now)
        if self.correction is not None:
            law.correction = self.correction.factor(clock)

    def _clock(self, law: Instance) -> MegaHertz | None:
        """The ceiling in force; without one the highest clock there is."""
        if law.clock is not None:
            return law.clock
        clocks = law.model.clocks if law.model is not None else self._clocks
        return clocks[-1] if clocks else None

    def _observe(self, law: Instance, seen: Window, clock: MegaHertz, now: Seconds) -> None:
        length = now - seen.since
        watts = Watts(seen.joules / length) if seen.joules > 0.0 and length > 0.0 else None
        if watts is not None:
            self._idle = min(self._idle, watts)
        if seen.events < LEAST_EVENTS:
            return
        observed = Seconds(seen.gaps / seen.events)
        batch = Batch(law.book.decoding, max(0.0, law.book.context))
        if self._memory is not None:
            iterations = max(1.0, length / observed)
            work = Batch(batch.decoding, batch.context_tokens, round(sum(seen.prompts) / iterations))
            self._memory.add(Sample(work, float(clock), observed, watts, now))
        if law.model is not None and self.correction is not None:
            predicted = mean_iteration(law.model, batch, seen.prompts, length, observed, clock)
            self.correction.observe(predicted, observed, clock)
            self.drifting = self.drift.observe(predicted, observed)

    def _learn(self, law: Instance, now: Seconds) -> None:
        assert self._memory is not None
        self._learned = now
        idle = Watts(self._idle if self._idle < float("inf") else 0.0)
        model = learn(self._memory, self._clocks, idle, LearnSettings())
        if model is not None:
            law.model = model
            self.correction = self.correction or Correction(self._clocks, CorrectionSettings())
            self.correction.reset()


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
