"""Pure: what a background refit learns from: what was swept once, moved to where the engine is now, and what
it did since.

The refit itself is `joulegate train latency` in a child process on both; its model is loaded and swapped
in whole. Rows swept once are multiplied by the correction of their clock: regimes that live traffic has
not reached since the engine changed follow those that it has.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import replace

from joulegate.units import Seconds
from predictor.latency_data import COLUMNS, Engine, Row
from predictor.online import Correction
from predictor.online_samples import Sample


def moved(rows: Iterable[Row], correction: Correction) -> list[Row]:
    """Rows of an old sweep as the corrected engine would give them today."""
    return [replace(row, seconds=Seconds(row.seconds * correction.factor(row.clock))) for row in rows]


def rows_of(samples: Iterable[Sample]) -> list[Row]:
    """Live samples as rows of a sweep. A sample without work in it says nothing."""
    return [
        Row(_phase(sample), sample.batch, sample.clock, sample.seconds, sample.watts, capped=False)
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


def _phase(sample: Sample) -> str:
    if not sample.batch.prefill_tokens:
        return "decode"
    return "mixed" if sample.batch.decoding else "prefill"
