"""Pure: the load of the next epoch's peak, by request type, from a weekly template and the recent level.

Series are (type, quantity): nine types by requests/s, uncached input tokens/s, output tokens/s. Each epoch
shows a mean and a peak (the busiest tenth) of each. Experts forecast the next peak: levels of four speeds,
followed on the peaks, on the means (less noisy; times a slow peak-to-mean ratio) and on the total (times a
slow mix); the last peak as it is; the last parts of the epoch, a trend's freshest word; and the same place in
the week, the quantile of the weeks kept, scaled by how the last hours differ from theirs. They are averaged;
an expert's weight falls with its recent error, and at first the quick ones are believed. A headroom is moved
until `quantile` of the peaks lie below the forecast. Without a quantile it is moved by the mean of that, for
0.5, and of what makes missed and wasted come down alike from what the last peak missed and wasted.
(DynamoLLM's weekly templates, papers §1.5.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegate.units import Seconds

Floats = NDArray[np.float64]
TYPES = 9
QUANTITIES = 3  # requests/s, input tokens/s, output tokens/s
SHAPE = (TYPES, QUANTITIES)
WEEK = Seconds(7 * 86_400.0)
DAY = Seconds(86_400.0)
WEEKS_KEPT = 6
NEIGHBOURS = (-1, 0, 0, 0, 1)  # epochs beside a place in the week that speak for it; itself thrice
GAINS = (0.1, 0.25, 0.5, 0.8)
SLOW_GAINS = 2  # the first of them
DOUBT = 1.0  # in slow experts at the start, in units of the usual error
SLOW = 0.2  # gain of the mix and of the peak-to-mean ratio
SEASON_GAIN = 0.3  # of the ratio of now to the template
LOSS_DECAY = 0.9
SHARPNESS = 6.0
HEADROOM_STEP = 0.03
HEADROOM_RANGE = (-0.7, 1.4)
NEAR = 0.02
RECORD_DECAY = 0.95
SURE = 0.02  # of the scale: a record this small says little
MEDIAN = 0.5
TINY = 1e-9


@dataclass(frozen=True, slots=True)
class EpochLoad:
    """What one epoch brought; arrays of rates, (TYPES, QUANTITIES)."""

    mean: Floats
    peak: Floats  # of its busiest part
    late: Floats  # mean of its last parts


class LoadForecast:
    """Learns one model's load, an epoch at a time, in order. Arrays are (TYPES, QUANTITIES).

    `quantile`: the share of peaks that should lie below the forecast; None: neither missed nor wasted is
    worse than the other.
    """

    def __init__(self, epoch: Seconds, quantile: float | None) -> None:
        self.epoch = epoch
        self.quantile = quantile
        self.headroom = np.zeros(QUANTITIES)  # log
        self._slots = max(1, round(WEEK / epoch))
        self._weeks = np.full((WEEKS_KEPT, self._slots, *SHAPE), np.nan, np.float32)
        self._level = np.ones(QUANTITIES)  # of now against the template
        self._seen = 0
        self._peaks = np.zeros((len(GAINS), *SHAPE))
        self._means = np.zeros((len(GAINS), *SHAPE))
        self._totals = np.zeros((len(GAINS), QUANTITIES))
        self._late = np.zeros((2, *SHAPE))
        self._last = np.zeros(SHAPE)
        self._ours = np.zeros((2, QUANTITIES))  # what was missed and wasted, fading
        self._plain = np.zeros((2, QUANTITIES))  # by the last peak
        self._ratio = np.ones(SHAPE)
        self._mix = np.full(SHAPE, 1.0 / TYPES)
        self._scale = np.zeros(QUANTITIES)
        slow = DOUBT * (np.arange(len(GAINS)) < SLOW_GAINS)
        losses = np.concatenate([slow, slow, slow, [0.0, 0.0, DOUBT, 0.0]])
        self._losses = np.repeat(losses[:, None, None], QUANTITIES, axis=2)

    def forecast(self, start: Seconds) -> Floats:
        """The peak of the epoch that begins at `start` (seconds; a multiple of a week is a Monday, 00:00)."""
        return self._pooled(self._experts(start)) * np.exp(self.headroom)

    def observe(self, start: Seconds, load: EpochLoad) -> None:
        """One epoch that has ended."""
        peak = load.peak
        if self._seen:
            experts = self._experts(start)
            step = self._step(peak, self._pooled(experts) * np.exp(self.headroom))
            self.headroom = np.clip(self.headroom + HEADROOM_STEP * step, *HEADROOM_RANGE)
            errors = np.abs(experts - peak).sum(1, keepdims=True) / (self._scale + TINY)
            self._losses = LOSS_DECAY * self._losses + errors
        self._learn(start, load)

    def _step(self, peak: Floats, forecast: Floats) -> Floats:
        """Which way the headroom should go, in -1..1 by quantity."""
        if self.quantile is None:
            by_number = self._to_quantile(peak, forecast, MEDIAN)
            return 0.5 * (by_number + self._to_balance(peak, forecast))
        return self._to_quantile(peak, forecast, self.quantile)

    def _to_balance(self, peak: Floats, forecast: Floats) -> Floats:
        """By what was missed and wasted lately, each as a part of what the last peak missed and wasted."""
        self._ours = RECORD_DECAY * self._ours + _missed(peak, forecast)
        self._plain = RECORD_DECAY * self._plain + _missed(peak, self._last)
        missed, wasted = self._ours / (self._plain + SURE * self._scale + TINY)
        step: Floats = 0.5 * (missed - wasted) / (missed + wasted + TINY)
        return step

    def _to_quantile(self, peak: Floats, forecast: Floats, quantile: float) -> Floats:
        """By the shares of the loaded series above and below; near is neither."""
        active = peak > 0
        number = np.maximum(active.sum(0), 1)
        above = (active & (peak > (1.0 + NEAR) * forecast)).sum(0) / number
        below = (active & (peak < (1.0 - NEAR) * forecast)).sum(0) / number
        step: Floats = quantile * above - (1.0 - quantile) * below
        return step

    def _experts(self, start: Seconds) -> Floats:
        by_mean = self._means * self._ratio
        by_total = self._totals[:, None, :] * self._mix * self._ratio
        season = self._season(start)
        seasonal = by_mean[1] if season is None else season * self._level
        late = self._late * self._ratio
        return np.concatenate([self._peaks, by_mean, by_total, late, seasonal[None], self._last[None]])

    def _pooled(self, experts: Floats) -> Floats:
        weights = np.exp(-SHARPNESS * (self._losses - self._losses.min(0)))
        pooled: Floats = (weights / weights.sum(0) * experts).sum(0)
        return pooled

    def _season(self, start: Seconds) -> Floats | None:
        """The quantile of this place and its neighbours in the weeks kept; in the days, while none is."""
        slot = round(start / self.epoch) % self._slots
        near = [(slot + step) % self._slots for step in NEIGHBOURS]
        found = self._weeks[:, near].reshape(-1, *SHAPE)
        found = found[~np.isnan(found[:, 0, 0])]
        if not len(found):
            day = max(1, round(DAY / self.epoch))
            found = self._weeks[:, slot % day :: day].reshape(-1, *SHAPE)
            found = found[~np.isnan(found[:, 0, 0])]
        quantile = MEDIAN if self.quantile is None else self.quantile
        return np.quantile(found.astype(np.float64), quantile, axis=0) if len(found) else None

    def _learn(self, start: Seconds, load: EpochLoad) -> None:
        mean, peak = load.mean, load.peak
        season = self._season(start)
        if season is not None:
            ratio = (peak.sum(0) + TINY) / (season.sum(0) + TINY)
            self._level = self._level + SEASON_GAIN * (np.clip(ratio, 0.1, 10.0) - self._level)
        self._seen += 1
        for place, gain in enumerate(GAINS):
            step = max(gain, 1.0 / self._seen)
            self._peaks[place] += step * (peak - self._peaks[place])
            self._means[place] += step * (mean - self._means[place])
            self._totals[place] += step * (mean.sum(0) - self._totals[place])
        self._last = peak
        self._late[0] = load.late
        self._late[1] += max(0.5, 1.0 / self._seen) * (load.late - self._late[1])
        slow = max(SLOW, 1.0 / self._seen)
        present, any_load = mean > 0, mean.sum(0) > 0
        self._ratio = np.where(
            present, self._ratio + slow * (peak / (mean + TINY) - self._ratio), self._ratio
        )
        self._mix = np.where(
            any_load, self._mix + slow * (mean / (mean.sum(0) + TINY) - self._mix), self._mix
        )
        self._scale = self._scale + max(0.1, 1.0 / self._seen) * (peak.sum(0) - self._scale)
        week = int(start // WEEK) % WEEKS_KEPT
        self._weeks[week, round(start / self.epoch) % self._slots] = peak


def _missed(peak: Floats, forecast: Floats) -> Floats:
    """(2, QUANTITIES): load above the forecast, and forecast above the load, over all types."""
    gap = peak - forecast
    return np.array([np.maximum(gap, 0.0).sum(0), np.maximum(-gap, 0.0).sum(0)])


def observed(
    arrivals: Floats,
    tokens_in: Floats,
    tokens_out: Floats,
    types: NDArray[np.int64],
    epoch: Seconds,
    parts: int,
) -> list[EpochLoad]:
    """Whole epochs only, each cut into `parts`.

    `arrivals` are seconds from 0; `types` are 3 * input size + output size.
    """
    epochs = int(arrivals.max() // epoch) if len(arrivals) else 0
    part = (arrivals // (epoch / parts)).astype(np.int64)
    inside = part < epochs * parts
    rates = np.zeros((epochs * parts, *SHAPE))
    for quantity, amount in enumerate((np.ones(len(arrivals)), tokens_in, tokens_out)):
        np.add.at(rates[:, :, quantity], (part[inside], types[inside]), amount[inside])
    by_epoch = (rates / (epoch / parts)).reshape(epochs, parts, *SHAPE)
    late = max(1, parts // 3)
    return [EpochLoad(e.mean(0), e.max(0), e[-late:].mean(0)) for e in by_epoch]
