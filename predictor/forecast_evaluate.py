"""Pure: load forecasts judged: what was under-forecast and over-provisioned, beside three plain forecasters.

under = sum of max(0, actual - forecast) / sum of actual; over the same with the sign turned; percentages. A
forecaster trades one for the other by scaling, so each plain one is also judged scaled to our under-forecast:
`over_at_same_under` compares like with like.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from joulegate.units import Seconds
from predictor.forecast import DAY, WEEK, EpochLoad, Floats, LoadForecast

WARM_SHARE = 6  # the first sixth of the epochs is learned from, not judged
LEAST_EPOCHS = 6
QUANTITY_NAMES = ("requests_per_s", "input_tokens_per_s", "output_tokens_per_s")
TYPE_NAMES = tuple(a + b for a in "SML" for b in "SML")


@dataclass(frozen=True, slots=True)
class Misses:
    under_forecast_pct: float
    over_provision_pct: float


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain forecaster's figures; `over_at_same_under_pct` None: no scale gives it our under-forecast."""

    under_forecast_pct: float
    over_provision_pct: float
    over_at_same_under_pct: float | None


@dataclass(frozen=True, slots=True)
class TraceReport:
    """One trace: the mean over the epoch lengths that could be judged, and each of them."""

    trace: str
    under_forecast_pct: float | None
    over_provision_pct: float | None
    by_type: Mapping[str, Misses]
    by_epoch: Mapping[str, "EpochReport | None"]  # by seconds; None: nothing to judge


@dataclass(frozen=True, slots=True)
class EpochReport:
    epochs: int  # judged
    under_forecast_pct: float
    over_provision_pct: float
    by_quantity: Mapping[str, Misses]
    by_type: Mapping[str, Misses]
    baselines: Mapping[str, Plain]


def judge(
    loads: Sequence[EpochLoad], epoch: Seconds, quantile: float | None, start: Seconds, warm_epochs: int
) -> EpochReport | None:
    """Forecast each epoch from those before it. None: too few epochs to judge, or nothing came in them.

    `start` is where the first epoch lies in the week, in seconds; `warm_epochs` at its head are not judged.
    """
    warm = max(warm_epochs, 1)
    peaks = np.array([load.peak for load in loads])
    if len(loads) - warm < LEAST_EPOCHS or not peaks[warm:].any():
        return None
    model = LoadForecast(epoch, quantile)
    forecasts = []
    for place, load in enumerate(loads):
        at = Seconds(start + place * epoch)
        if place >= warm:
            forecasts.append(model.forecast(at))
        model.observe(at, load)
    ours, actual = np.array(forecasts), peaks[warm:]
    own = misses(ours, actual)
    return EpochReport(
        len(actual),
        own.under_forecast_pct,
        own.over_provision_pct,
        {name: misses(ours[:, :, [q]], actual[:, :, [q]]) for q, name in enumerate(QUANTITY_NAMES)},
        {
            name: misses(ours[:, [t]], actual[:, [t]])
            for t, name in enumerate(TYPE_NAMES)
            if actual[:, t].sum() > 0
        },
        {
            name: _against(
                own, np.array([plain(peaks, place, warm, epoch) for place in range(warm, len(peaks))]), actual
            )
            for name, plain in PLAIN.items()
        },
    )


def summary(trace: str, by_epoch: Mapping[str, EpochReport | None]) -> TraceReport:
    """Means over the epoch lengths that were judged."""
    judged = [report for report in by_epoch.values() if report is not None]
    types = [name for name in TYPE_NAMES if any(name in report.by_type for report in judged)]
    by_type = {
        name: _mean([report.by_type[name] for report in judged if name in report.by_type]) for name in types
    }
    if not judged:
        return TraceReport(trace, None, None, by_type, by_epoch)
    whole = _mean([Misses(report.under_forecast_pct, report.over_provision_pct) for report in judged])
    return TraceReport(trace, whole.under_forecast_pct, whole.over_provision_pct, by_type, by_epoch)


def _mean(found: Sequence[Misses]) -> Misses:
    return Misses(
        sum(m.under_forecast_pct for m in found) / len(found),
        sum(m.over_provision_pct for m in found) / len(found),
    )


def misses(forecast: Floats, actual: Floats) -> Misses:
    """Arrays are (epochs, types, quantities); a quantity is relative to its own sum, and all weigh alike."""
    total = np.maximum(actual.sum((0, 1)), 1e-12)
    under = np.maximum(actual - forecast, 0.0).sum((0, 1)) / total
    over = np.maximum(forecast - actual, 0.0).sum((0, 1)) / total
    return Misses(float(100.0 * np.mean(under)), float(100.0 * np.mean(over)))


def _against(own: Misses, forecast: Floats, actual: Floats) -> Plain:
    raw = misses(forecast, actual)
    low, high = 0.05, 20.0
    if misses(forecast * high, actual).under_forecast_pct > own.under_forecast_pct:
        return Plain(raw.under_forecast_pct, raw.over_provision_pct, None)
    for _ in range(40):
        middle = (low * high) ** 0.5
        if misses(forecast * middle, actual).under_forecast_pct > own.under_forecast_pct:
            low = middle
        else:
            high = middle
    return Plain(
        raw.under_forecast_pct, raw.over_provision_pct, misses(forecast * high, actual).over_provision_pct
    )


def _constant(peaks: Floats, place: int, warm: int, epoch: Seconds) -> Floats:
    mean: Floats = peaks[:warm].mean(0)
    return mean


def _last(peaks: Floats, place: int, warm: int, epoch: Seconds) -> Floats:
    last: Floats = peaks[place - 1]
    return last


def _seasonal(peaks: Floats, place: int, warm: int, epoch: Seconds) -> Floats:
    """A week before; a day before; the last value, while nothing older is there."""
    for season in (WEEK, DAY):
        before = place - round(season / epoch)
        if before >= 0:
            then: Floats = peaks[before]
            return then
    return _last(peaks, place, warm, epoch)


PLAIN: Mapping[str, Callable[[Floats, int, int, Seconds], Floats]] = {
    "constant": _constant,
    "last_value": _last,
    "seasonal_naive": _seasonal,
}
