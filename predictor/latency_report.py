"""Pure: one evaluation of latency models over sweeps, in the words of `evaluate latency --json`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from joulegate.errors import UserError
from predictor.latency_data import Sweep
from predictor.latency_evaluate import (
    Prediction,
    Scores,
    Split,
    few_shot,
    leave_one_clock_out,
    leave_one_load_out,
    monotone_violations,
    predict,
    predicted,
    random_split,
    score,
    search_us,
)
from predictor.table import TableModel

PROBES = 200  # random places per model where monotony is tried


@dataclass(frozen=True, slots=True)
class Way:
    """How rows are divided into learned and predicted."""

    name: str
    few_shot: int = 0
    train_share: float = 0.9
    model: Mapping[str, TableModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of all rows, and by engine."""

    way: str
    total: Scores
    search_us: float
    engines: Mapping[str, Scores]

    def document(self) -> dict[str, object]:
        """As `--json` prints it."""
        total, engines = asdict(self.total), {name: asdict(found) for name, found in self.engines.items()}
        return {"way": self.way, **total, "search_us": self.search_us, "engines": engines}


def report(
    sweeps: Sequence[Sweep], way: Way, seed: int, timer: Callable[[], float], say: Callable[[str], object]
) -> tuple[Report, list[Prediction]]:
    """Learn and predict every sweep; figures are pooled over all rows predicted, which come beside them.

    Raises UserError when nothing was left to predict.
    """
    everything: list[Prediction] = []
    engines: dict[str, Scores] = {}
    slowest = 0.0
    for sweep in sweeps:
        rng = np.random.default_rng(seed)
        say(f"{sweep.engine.name}: {len(sweep.rows)} rows")
        predictions, models = _predicted(sweep, way, rng)
        if not predictions:
            continue
        violations = sum(monotone_violations(model, rng, PROBES) for model in models)
        engines[sweep.engine.name] = score(predictions, violations)
        everything += predictions
        slowest = max(slowest, search_us(models[0], [row.batch for row in sweep.rows], timer))
    if not everything:
        raise UserError("nothing was left out to be predicted", "sweep more clocks, or learn fewer of them")
    total = score(everything, sum(scores.monotone_violations for scores in engines.values()))
    return Report(way.name, total, slowest, engines), everything


def _predicted(sweep: Sweep, way: Way, rng: np.random.Generator) -> tuple[list[Prediction], list[TableModel]]:
    if way.name == "model":
        model = way.model.get(sweep.engine.name)
        if model is None:
            raise UserError(
                f"the model knows no engine {sweep.engine.name!r}", f"it knows {', '.join(way.model)}"
            )
        return [predicted(model, row) for row in sweep.rows], [model]
    return predict(sweep, _splits(sweep, way, rng), rng)


def _splits(sweep: Sweep, way: Way, rng: np.random.Generator) -> Iterator[Split]:
    if way.name == "leave-one-clock-out":
        return leave_one_clock_out(sweep)
    if way.name == "leave-one-load-out":
        return leave_one_load_out(sweep)
    if way.name == "few-shot":
        return few_shot(sweep, way.few_shot)
    return random_split(sweep, way.train_share, rng)
