"""Pure: what a background refit learns from: what the model knew, moved to where the engine is now, and what
the engine did since.

The refit itself is `predictor.refit_child` on both, in a process of its own; its model is loaded and swapped
in whole. What the old model says is multiplied by what samples of like work showed against it, and by the
correction of its clock where there are none: regimes that live traffic has not reached since the engine
changed follow those that it has.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds
from predictor.latency_data import COLUMNS, Engine, Row, phase_of
from predictor.online import Correction
from predictor.online_samples import Sample
from predictor.sweep import spread

CLOCKS = 8  # at which the old model is asked
CONTEXTS = (256, 1024, 4096)  # tokens of each sequence
CLOCK_SHARE = 0.2  # of the highest clock: as far apart as twice the batch, or twice the context


@dataclass(frozen=True, slots=True)
class Reach:
    """The largest work that is asked for."""

    batch: int
    context_tokens: float
    prompt_tokens: int


def remembered(
    model: EngineModel, correction: Correction, reach: Reach, samples: Sequence[Sample]
) -> list[Row]:
    """A sweep of `model` as the engine would give it today: about 250 rows. `samples`: what it did lately."""
    works = [
        ("decode", Batch(batch, float(batch * context)))
        for batch in _doubling(1, reach.batch)
        for context in CONTEXTS
        if batch * context <= reach.context_tokens
    ]
    works += [
        ("prefill", Batch(0, 0.0, tokens, tokens * tokens / 2.0))
        for tokens in _doubling(64, reach.prompt_tokens)
    ]
    points = [(phase, batch, clock) for clock in spread(model.clocks, CLOCKS) for phase, batch in works]
    factors = _factors(model, correction, [(batch, float(clock)) for _, batch, clock in points], samples)
    idle = Row("idle", Batch(), float(model.clocks[-1]), Seconds(0.0), model.idle_watts, capped=False)
    return [idle] + [
        Row(
            phase=phase,
            batch=batch,
            clock=float(clock),
            seconds=Seconds(model.iteration_time(batch, clock) * factor),
            watts=model.watts(batch, clock) or None,
            capped=False,
        )
        for (phase, batch, clock), factor in zip(points, factors, strict=True)
    ]


def _factors(
    model: EngineModel,
    correction: Correction,
    points: Sequence[tuple[Batch, float]],
    samples: Sequence[Sample],
) -> list[float]:
    """Observed over predicted at each point: a mean of log ratios, the nearer the more, the correction of the
    clock as one more."""
    own = np.log([correction.factor(clock) for _, clock in points])
    if not samples:
        return [float(factor) for factor in np.exp(own)]
    top = model.clocks[-1]
    seen = [(sample.batch, sample.clock) for sample in samples]
    ratios = np.log([s.seconds / model.iteration_time(s.batch, MegaHertz(round(s.clock))) for s in samples])
    apart = _places(points, top)[:, None, :] - _places(seen, top)[None, :, :]
    weights = np.exp(-0.5 * (apart**2).sum(axis=2))
    return [float(factor) for factor in np.exp((own + weights @ ratios) / (1.0 + weights.sum(axis=1)))]


def _places(points: Sequence[tuple[Batch, float]], top: float) -> npt.NDArray[np.float64]:
    return np.array(
        [
            (
                np.log2(1.0 + batch.decoding),
                np.log2(1.0 + batch.context_tokens),
                clock / top / CLOCK_SHARE,
            )
            for batch, clock in points
        ]
    )


def _doubling(low: int, high: int) -> list[int]:
    found = []
    while low < high:
        found.append(low)
        low *= 2
    return [*found, high] if high > 0 else found


def rows_of(samples: Iterable[Sample]) -> list[Row]:
    """Live samples as rows of a sweep. A sample without work in it says nothing."""
    return [
        Row(phase_of(sample.batch), sample.batch, sample.clock, sample.seconds, sample.watts, capped=False)
        for sample in samples
        if sample.batch.decoding or sample.batch.prefill_tokens
    ]


def as_csv(engine: Engine, rows: Iterable[Row]) -> str:
    """The file that `train latency` reads."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        batch = row.batch
        writer.writerow(
            {
                "source": engine.source,
                "gpu": engine.gpu,
                "stack": engine.stack,
                "model": engine.model,
                "tp": engine.tp,
                "phase": row.phase,
                "batch": batch.decoding or 1,
                "context_tokens": batch.context_tokens / max(1, batch.decoding),
                "new_tokens": batch.prefill_tokens,
                "freq_mhz": row.clock,
                "latency_ms": 1000.0 * row.seconds,
                "power_w": "" if row.watts is None else row.watts,
                "power_capped": int(row.capped),
            }
        )
    return text.getvalue()
