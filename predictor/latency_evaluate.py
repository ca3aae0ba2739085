"""Pure: how well a model predicts rows it has not learned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from joulegate.domain import Batch
from joulegate.units import Seconds
from predictor.latency_data import Row, Sweep
from predictor.latency_fit import Array
from predictor.latency_train import train
from predictor.table import TableModel, search


@dataclass(frozen=True, slots=True)
class Split:
    learn: tuple[Row, ...]
    test: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row that was not learned. Errors are against the truth where a row has it."""

    row: Row
    seconds: float
    watts: float | None  # None: the model knows no power
    within_p90: bool  # the observation lies in the model's own 90 % band

    @property
    def true_seconds(self) -> float:
        return self.row.seconds if self.row.true_seconds is None else self.row.true_seconds

    @property
    def true_watts(self) -> float | None:
        return self.row.watts if self.row.true_watts is None else self.row.true_watts


@dataclass(frozen=True, slots=True)
class Scores:
    """`r2` and `mae` are of iterations per second, as throttLL'eM reports them.

    `r2_ceiling`: what the rows' own noise would leave a perfect model; None where they do not tell it.
    `coverage_p90`: share of rows in the model's own 90 % band.
    """

    n: int
    r2: float
    r2_ceiling: float | None
    mape_pct: float
    p95_abs_pct: float
    mae_iterations_per_s: float
    coverage_p90: float
    power_mape_pct: float | None
    monotone_violations: int


def random_split(sweep: Sweep, share: float, rng: np.random.Generator) -> Iterator[Split]:
    order = rng.permutation(len(sweep.rows))
    cut = round(share * len(order))
    yield Split(
        tuple(sweep.rows[i] for i in sorted(order[:cut])), tuple(sweep.rows[i] for i in sorted(order[cut:]))
    )


def leave_one_clock_out(sweep: Sweep) -> Iterator[Split]:
    for clock in _clocks(sweep):
        yield _by_clock(sweep, [other for other in _clocks(sweep) if other != clock])


def leave_one_load_out(sweep: Sweep) -> Iterator[Split]:
    """A load level: so many sequences decoding, or so many prompt tokens, at any context and clock."""
    loads = [(row.batch.decoding, row.batch.prefill_tokens) for row in sweep.rows]
    for left_out in sorted(set(loads)):
        pairs = list(zip(loads, sweep.rows, strict=True))
        yield Split(
            tuple(row for load, row in pairs if load != left_out),
            tuple(row for load, row in pairs if load == left_out),
        )


def few_shot(sweep: Sweep, count: int) -> Iterator[Split]:
    """The highest clock and `count` more, spread evenly in MHz down to the lowest, are learned."""
    clocks = np.array(_clocks(sweep))
    wanted = np.linspace(clocks[0], clocks[-1], count + 1)
    yield _by_clock(sweep, [float(clocks[np.abs(clocks - clock).argmin()]) for clock in wanted])


def predict(
    sweep: Sweep, splits: Iterator[Split], rng: np.random.Generator
) -> tuple[list[Prediction], list[TableModel]]:
    """Learn each split and predict what it left out; splits with nothing left out are passed over."""
    predictions: list[Prediction] = []
    models = []
    for split in splits:
        if not split.test:
            continue
        clocks = [round(clock) for clock in _clocks(sweep)]
        model = train(replace(sweep, rows=split.learn), clocks, rng).model
        predictions += [predicted(model, row) for row in split.test]
        models.append(model)
    return predictions, models


def predicted(model: TableModel, row: Row) -> Prediction:
    seconds = model.iteration_time(row.batch, row.clock)
    watts = model.watts(row.batch, row.clock) if model.trained.power_known else None
    error = abs(float(np.log(row.seconds / seconds)))
    return Prediction(row, seconds, watts, error <= model.trained.time_error_p90)


def score(predictions: Sequence[Prediction], violations: int) -> Scores:
    """Pooled over every row predicted. Raises ValueError when there is none."""
    if not predictions:
        raise ValueError("nothing was left out to be predicted")
    truth = np.array([p.true_seconds for p in predictions])
    seconds = np.array([p.seconds for p in predictions])
    error = np.abs(seconds / truth - 1.0)
    power = [abs(p.watts / p.true_watts - 1.0) for p in predictions if p.watts is not None and p.true_watts]
    return Scores(
        n=len(predictions),
        r2=_r2(1.0 / truth, 1.0 / seconds),
        r2_ceiling=_r2_ceiling(predictions),
        mape_pct=100.0 * float(error.mean()),
        p95_abs_pct=100.0 * float(np.quantile(error, 0.95)),
        mae_iterations_per_s=float(np.abs(1.0 / seconds - 1.0 / truth).mean()),
        coverage_p90=float(np.mean([p.within_p90 for p in predictions])),
        power_mape_pct=100.0 * float(np.mean(power)) if power else None,
        monotone_violations=violations,
    )


def monotone_violations(model: TableModel, rng: np.random.Generator, probes: int) -> int:
    """How often a lower clock, or more work of any kind, was faster: random places up to 3x the range."""
    tops = [model.trained.ranges[name][1] for name in ("batch", "context_tokens", "prefill_tokens")]
    count = 0
    for _ in range(probes):
        b, k, n = (int(rng.integers(0, int(3 * top) + 1)) for top in tops)
        base = Batch(b, k, n, n * n / 2.0)
        clock = model.clocks[int(rng.integers(len(model.clocks)))]
        times, _ = model.curve(base)
        count += sum(slow < fast for slow, fast in pairwise(times))
        here = model.iteration_time(base, clock)
        more = (
            replace(base, decoding=b + 1),
            replace(base, context_tokens=base.context_tokens + 1.0),
            replace(base, prefill_tokens=n + 1),
            replace(base, prefill_attention=base.prefill_attention * 1.01),
        )
        count += sum(model.iteration_time(batch, clock) < here for batch in more)
    return count


def search_us(model: TableModel, batches: Sequence[Batch], timer: Callable[[], float]) -> float:
    """Median microseconds to weigh every supported clock for one batch. `timer` gives seconds."""
    spent = []
    for batch in batches:
        limit = Seconds(1.2 * model.iteration_time(batch, model.clocks[-1]))
        started = timer()
        search(model, batch, limit)
        spent.append(timer() - started)
    return 1e6 * float(np.median(spent))


def _clocks(sweep: Sweep) -> list[float]:
    return sorted({row.clock for row in sweep.rows})


def _by_clock(sweep: Sweep, learned: Sequence[float]) -> Split:
    return Split(
        tuple(row for row in sweep.rows if row.clock in learned),
        tuple(row for row in sweep.rows if row.clock not in learned),
    )


def _r2(truth: Array, predicted: Array) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1.0 - float(((truth - predicted) ** 2).sum()) / spread if spread else float("nan")


def _r2_ceiling(predictions: Sequence[Prediction]) -> float | None:
    """R2 of predictions without error, as these rows would judge them; None: not all tell their own.

    Of iterations/s: the standard error of 1/t is that of t over t^2.
    """
    errors = [p.row.error for p in predictions if p.row.true_seconds is None and p.row.error is not None]
    if len(errors) < len(predictions):
        return None
    rates = 1.0 / np.array([p.row.seconds for p in predictions])
    noise = np.array(errors) * rates**2
    return _r2(rates, rates + noise)
