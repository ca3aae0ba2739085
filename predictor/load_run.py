"""Shell: traces read, cut into epochs and judged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from joulegate.domain import Cuts
from joulegate.errors import UserError
from joulegate.units import Seconds
from predictor.forecast import DAY, EpochLoad, observed
from predictor.forecast_evaluate import WARM_SHARE, EpochReport, TraceReport, judge, summary
from predictor.forecast_synthetic import Weeks, synthetic_weeks
from predictor.length_data import read_arrivals

PARTS = 10  # an epoch's peak is its busiest tenth
SYNTHETIC_RATE = 0.5  # requests/s at noon
SEED = 7
MOST_PARTS = 2_000_000  # of epochs: half a gigabyte


def judged(
    traces: Sequence[Path], warm: Path | None, epochs: Sequence[float], quantile: float | None, synthetic: int
) -> list[TraceReport]:
    """A report a trace; `epochs` are lengths in seconds."""
    if synthetic:
        weeks = synthetic_weeks(np.random.default_rng(SEED), synthetic, SYNTHETIC_RATE)
        name = f"synthetic, {synthetic} weeks, the last one judged"
        return [
            summary(name, {f"{e:g}": _judged(weeks, None, Seconds(e), quantile, synthetic) for e in epochs})
        ]
    earlier = _weeks(warm) if warm is not None else None
    return [
        summary(name, {f"{e:g}": _judged(weeks, earlier, Seconds(e), quantile, 0) for e in epochs})
        for name, weeks in ((path.name, _weeks(path)) for path in traces)
    ]


def _weeks(path: Path) -> Weeks:
    at, tokens_in, tokens_out = read_arrivals(path)
    return Weeks(np.array(at) - at[0], np.array(tokens_in), np.array(tokens_out))


def _judged(
    weeks: Weeks, earlier: Weeks | None, epoch: Seconds, quantile: float | None, synthetic: int
) -> EpochReport | None:
    loads = _observed(weeks, epoch)
    warm = len(loads) * (synthetic - 1) // synthetic if synthetic else len(loads) // WARM_SHARE
    if earlier is not None:
        before = _observed(earlier, epoch)
        warm, loads = len(before), before + loads
    return judge(loads, epoch, quantile, Seconds(0.0), warm)


def _observed(weeks: Weeks, epoch: Seconds) -> list[EpochLoad]:
    span = float(weeks.arrivals.max(initial=0.0))
    if span / epoch * PARTS > MOST_PARTS:
        raise UserError(
            f"a trace of {span / DAY:.3g} days has too many epochs of {epoch:g} s",
            "check its timestamp_s (seconds), or give a longer --epoch",
        )
    cuts = Cuts()
    sizes_in = np.searchsorted(cuts.input, weeks.tokens_in, side="right")
    sizes_out = np.searchsorted(cuts.output, weeks.tokens_out, side="right")
    return observed(
        weeks.arrivals,
        weeks.tokens_in.astype(np.float64),
        weeks.tokens_out.astype(np.float64),
        3 * sizes_in + sizes_out,
        epoch,
        PARTS,
    )
