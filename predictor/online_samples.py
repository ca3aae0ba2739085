"""Pure: a bounded memory of what an engine did, kept by regime so that rare ones survive busy ones.

A sliding window would hold the last hour of whatever load there was. Here every regime (clock band, batch,
context, prompt tokens; each by powers of two) keeps its own few latest samples (papers §8.4, plus the clock).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from joulegate.domain import Batch
from joulegate.units import MegaHertz, Seconds, Watts

Regime = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Mean work of the iterations of one window, at one clock, and what they took."""

    batch: Batch
    clock: float  # MHz, as read back
    seconds: Seconds  # one iteration
    watts: Watts | None  # per GPU; None: no telemetry
    at: Seconds  # end of the window


@dataclass(frozen=True, slots=True)
class SampleSettings:
    per_regime: int = 8
    regimes: int = 512
    clock_bands: int = 12


class SampleMemory:
    """At most regimes x per_regime samples (4,096: about 1 MB); the regime longest unseen goes first."""

    def __init__(self, clocks: Sequence[MegaHertz], settings: SampleSettings) -> None:
        if not clocks:
            raise ValueError("a sample memory needs the clocks of its engine")
        self.settings = settings
        self._low = float(min(clocks))
        self._width = max(1.0, (max(clocks) - self._low) / settings.clock_bands)
        self._kept: OrderedDict[Regime, deque[Sample]] = OrderedDict()
        self.seen = 0  # samples added, kept or not

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def __iter__(self) -> Iterator[Sample]:
        for kept in self._kept.values():
            yield from kept

    def add(self, sample: Sample) -> None:
        self.seen += 1
        regime = self._regime(sample)
        kept = self._kept.get(regime)
        if kept is None:
            kept = self._kept[regime] = deque(maxlen=self.settings.per_regime)
            if len(self._kept) > self.settings.regimes:
                self._kept.popitem(last=False)
        kept.append(sample)
        self._kept.move_to_end(regime)

    def forget_before(self, moment: Seconds) -> None:
        """Drop what was seen before `moment`: the engine has changed since."""
        for regime in list(self._kept):
            fresh = [sample for sample in self._kept[regime] if sample.at >= moment]
            if fresh:
                self._kept[regime] = deque(fresh, maxlen=self.settings.per_regime)
            else:
                del self._kept[regime]

    def _regime(self, sample: Sample) -> Regime:
        batch = sample.batch
        return (
            int((sample.clock - self._low) / self._width),
            batch.decoding.bit_length(),
            int(batch.context_tokens).bit_length(),
            batch.prefill_tokens.bit_length(),
        )
