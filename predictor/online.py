"""Pure: what live traffic says about a latency model: a factor per clock band, and how wrong it still is.

A model is right on average over a profile; one instance, today, is not average (other driver, warm
chassis, a neighbour on the host). So each instance keeps one `Correction` beside its model:

    log factor(band) = shared + offset(band)

`shared` follows every observation, `offset` only those of its own band, so a band never visited moves
with the rest of the engine. Both are EWMAs of log(observed / predicted), faster up than down: an engine
that turned slow costs objectives, one that turned fast costs watts. Several observations in a row that lie
above what the correction usually leaves are a step, not noise, and followed at once. The factor is clipped
to [0.7, 1.5] (papers §10.2, 6).

A factor must not undo what the model promises, that a lower clock is never faster: a band's factor is
therefore never below that of a band above it. That errs towards too slow, so towards higher clocks.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, log1p

from joulegate.units import MegaHertz, Seconds


@dataclass(frozen=True, slots=True)
class CorrectionSettings:
    """Gains are per observation, meant for one observation per control tick (about four a second)."""

    bands: int = 6
    rise_gain: float = 0.1
    fall_gain: float = 0.05
    step_gain: float = 0.4  # instead of rise_gain from the step_run-th surprise in a row on
    step_run: int = 3
    offset_gain: float = 0.5  # of the gain above: how fast a band parts from the rest
    lowest: float = 0.7
    highest: float = 1.5
    outlier_ratio: float = 2.0  # one observation counts as at most this much slower or faster
    first_error: float = 0.05  # relative, before anything is known
    error_gain: float = 0.02


class Correction:
    """Correction of one instance. `observe` after a tick, `factor` before the next; both under 2 us."""

    def __init__(self, clocks: Sequence[MegaHertz], settings: CorrectionSettings) -> None:
        if not clocks:
            raise ValueError("a correction needs the clocks of its model")
        self.settings = settings
        low, high = float(min(clocks)), float(max(clocks))
        width = (high - low) / settings.bands
        steps = range(1, settings.bands) if width else ()
        self.borders = tuple(low + width * step for step in steps)  # MHz, between two bands
        self._shared = 0.0
        self._offsets = [0.0] * (len(self.borders) + 1)
        self._factors = [1.0] * len(self._offsets)
        self._error = settings.first_error
        self._surprises = 0  # in a row, upwards
        self.observations = 0

    @property
    def error_p95(self) -> float:
        """Relative error that 95 % of observations stay under, after correction: the governor's kappa."""
        return self._error

    @property
    def factors(self) -> tuple[float, ...]:
        """Of every band, the lowest clocks first."""
        return tuple(self._factors)

    def factor(self, clock: float) -> float:
        """What to multiply the model's seconds by at `clock` MHz; within [lowest, highest]."""
        return self._factors[bisect_right(self.borders, clock)]

    def observe(self, predicted: Seconds, observed: Seconds, clock: float) -> None:
        """Learn from one pair: what the model said, uncorrected, and what happened, at `clock` MHz.

        Raises ValueError for a time that is not positive and finite.
        """
        if not (isfinite(predicted) and isfinite(observed) and predicted > 0.0 and observed > 0.0):
            raise ValueError(f"predicted {predicted} s, observed {observed} s: both must be positive")
        settings = self.settings
        band = bisect_right(self.borders, clock)
        self._learn_error(abs(observed / (predicted * self._factors[band]) - 1.0))
        limit = log(settings.outlier_ratio)
        ratio = min(limit, max(-limit, log(observed / predicted)))
        surprise = ratio - self._shared - self._offsets[band]
        self._surprises = self._surprises + 1 if surprise > log1p(self._error) else 0
        gain = settings.fall_gain if surprise <= 0.0 else settings.rise_gain
        if self._surprises >= settings.step_run:
            gain = settings.step_gain
        self._shared += gain * surprise
        self._offsets[band] += gain * settings.offset_gain * surprise
        self.observations += 1
        self._refresh()

    def _learn_error(self, error: float) -> None:
        # A step up for an error above, a 19 times smaller one down: rests where 5 % lie above.
        step = self.settings.error_gain * max(self._error, 0.005)
        self._error += 0.95 * step if error > self._error else -0.05 * step

    def _refresh(self) -> None:
        settings = self.settings
        above = settings.lowest
        for band in range(len(self._offsets) - 1, -1, -1):
            factor = min(settings.highest, max(above, exp(self._shared + self._offsets[band])))
            self._factors[band] = above = factor
