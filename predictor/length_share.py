"""Pure: what one replica tells another of the lengths it has seen, in few bytes.

Told: the rows learned last, and per model what is needed to go on from there. Taken: only what the other has
clearly seen more of. Nothing is added up, so the same message may come twice, late, or by another way, and
two replicas that tell each other for ever settle. (Counts that were added would be counted again each time.)

Keys are hashes; no text, no name but the models' own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from predictor.experts_rls import LeastSquares
from predictor.history import ROW
from predictor.length import HistoryPredictor, ModelState, root_of
from predictor.length_text import TextPredictor

MOST_ROWS = 4096
MOST_MODELS = 16
MOST_BYTES = 1 << 20
AT_ONCE = 256  # rows taken without a pause: a fifth of a millisecond
CLEARLY = 1.5  # times as much evidence


@dataclass(frozen=True, slots=True)
class Told:
    """A message, read: packed rows by key, oldest first, and models by name."""

    keys: list[int]
    rows: list[bytes]
    models: dict[str, "ToldModel"]


class ToldModel(BaseModel):
    """What a replica says of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    swaps: Annotated[int, Field(ge=0, le=10_000)]
    seen: Annotated[int, Field(ge=0)]
    pools: list[list[float]]
    bias: list[float]
    losses: list[list[float]]  # of the median's voices, of the high quantile's
    offset: float
    line: list[list[float]] | None  # weights
    spread: Annotated[float, Field(ge=0.0)]


class Head(BaseModel):
    """The first line of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    form: Literal["joulegate-lengths-shared/1"]
    rows: Annotated[int, Field(ge=0, le=MOST_ROWS)]
    models: Annotated[dict[str, ToldModel], Field(max_length=MOST_MODELS)]


def tell(predictor: HistoryPredictor) -> bytes:
    """A message of less than MOST_BYTES."""
    keys, rows = predictor.table.newest(MOST_ROWS)
    names = list(predictor.models)[-MOST_MODELS:]
    models = {name: _model(predictor.models[name]) for name in names}
    head = orjson.dumps({"form": "joulegate-lengths-shared/1", "rows": len(keys), "models": models})
    return b"".join((head, b"\n", np.array(keys, np.int64).tobytes(), *rows))


def _model(state: ModelState) -> dict[str, object]:
    line = state.line
    return {
        "swaps": state.swaps,
        "seen": state.seen,
        "pools": state.pools,
        "bias": state.bias,
        "losses": [state.median.losses, state.high.losses],
        "offset": state.offset,
        "line": None if line is None else line.weights.tolist(),
        "spread": 0.0 if line is None else line.spread,
    }


def read(message: bytes) -> Told:
    """Raises ValueError for what `tell` did not write."""
    if len(message) > MOST_BYTES:
        raise ValueError("too long")
    head, _, body = message.partition(b"\n")
    found = Head.model_validate_json(head)
    number = found.rows
    if len(body) != number * (8 + ROW.size):
        raise ValueError("rows are missing")
    keys = np.frombuffer(body, np.int64, number)
    values = np.frombuffer(body, np.float32, offset=8 * number)
    if not np.isfinite(values).all() or (keys <= 0).any():
        raise ValueError("a row that nobody learned")
    rows = [body[at : at + ROW.size] for at in range(8 * number, len(body), ROW.size)]
    return Told(keys.tolist(), rows, found.models)


def take(predictor: HistoryPredictor, told: Told) -> Iterator[int]:
    """Take what `told` knows better. Yields the rows taken so far: a place to pause between pieces.

    Raises ValueError for a model of other shapes, with nothing of it taken.
    """
    taken = 0
    for start in range(0, len(told.keys), AT_ONCE):
        pieces = zip(told.keys[start : start + AT_ONCE], told.rows[start : start + AT_ONCE], strict=True)
        taken += sum([predictor.table.adopt(key, row, CLEARLY) for key, row in pieces])
        yield taken
    for name, model in told.models.items():
        mine = predictor.models.get(name)
        if mine is None or (model.swaps, model.seen) > (mine.swaps, CLEARLY * mine.seen):
            predictor.enter(name, _taken(predictor, name, model))
        yield taken


def _taken(predictor: HistoryPredictor, name: str, told: ToldModel) -> ModelState:
    state = predictor.fresh(name)
    _same_shape(told.pools, state.pools)
    _same_shape([told.bias], [state.bias])
    _same_shape(told.losses, [state.median.losses, state.high.losses])
    state.root = root_of(name, told.swaps)
    state.swaps, state.seen = told.swaps, told.seen
    state.pools, state.bias, state.offset = told.pools, told.bias, float(told.offset)
    state.median.restore(told.losses[0])
    state.high.restore(told.losses[1])
    if told.line is not None and isinstance(predictor, TextPredictor):
        start = predictor.start  # their weights, held as loosely as those of a model never seen
        _same_shape(told.line, start.weights.tolist())
        state.line = LeastSquares(np.array(told.line), np.diag(start.variance), float(told.spread))
    return state


def _same_shape(told: list[list[float]], ours: list[list[float]]) -> None:
    if [len(row) for row in told] != [len(row) for row in ours]:
        raise ValueError("a model of another version")
