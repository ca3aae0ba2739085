"""Pure: a length predictor as plain arrays and back: what is saved.

Arrays: `row_keys` (int64), `row_values` (float32, (n, 6) as predictor.history); per model the `m<i>_...`.
JSON: `models`, a list of the scalars of ModelState. The prior: `ngrams`, `tree_*`, `start_*`.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from predictor.experts_rls import LeastSquares
from predictor.history import Rows
from predictor.length import HistoryPredictor, ModelState
from predictor.length_prior import TextPrior, Trees
from predictor.length_text import Start

Array = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64] | NDArray[np.uint8]
Arrays = Mapping[str, Array]


def prior_arrays(prior: TextPrior, start: Start) -> dict[str, Array]:
    """A trained prior, and where a model never seen starts."""
    trees = prior.trees
    return {
        "ngrams": np.frombuffer(prior.ngrams, np.uint8),
        "ngram_line": np.array([prior.unit, prior.start]),
        "tree_roots": np.array(trees.roots, np.int64),
        "tree_feature": np.array(trees.feature, np.int64),
        "tree_threshold": np.array(trees.threshold),
        "tree_left": np.array(trees.left, np.int64),
        "tree_right": np.array(trees.right, np.int64),
        "tree_start": np.array([trees.start]),
        "start_weights": start.weights,
        "start_variance": start.variance,
        "start_spread": np.array([start.spread]),
        "start_pools": np.array(start.pools),
    }


def prior_of(arrays: Arrays) -> tuple[TextPrior, Start]:
    """The inverse of `prior_arrays`; raises KeyError where one is missing."""
    trees = Trees(
        arrays["tree_roots"].tolist(),
        arrays["tree_feature"].tolist(),
        arrays["tree_threshold"].tolist(),
        arrays["tree_left"].tolist(),
        arrays["tree_right"].tolist(),
        float(arrays["tree_start"][0]),
    )
    start = Start(
        np.asarray(arrays["start_weights"], np.float64),
        np.asarray(arrays["start_variance"], np.float64),
        float(arrays["start_spread"][0]),
        tuple(map(tuple, arrays["start_pools"].tolist())),
    )
    unit, middle = arrays["ngram_line"].tolist()
    return TextPrior(arrays["ngrams"].tobytes(), unit, middle, trees), start


def state_arrays(predictor: HistoryPredictor) -> tuple[list[dict[str, object]], dict[str, Array]]:
    """(the models' scalars, the arrays) of everything learned."""
    rows = predictor.table.dump()
    arrays: dict[str, Array] = {
        "row_keys": np.array(rows.keys, np.int64),
        "row_values": np.array(rows.values, np.float32),
    }
    models: list[dict[str, object]] = []
    for place, (name, state) in enumerate(predictor.models.items()):
        models.append({"name": name, "root": state.root, "swaps": state.swaps, "seen": state.seen})
        arrays[f"m{place}_pools"] = np.array(state.pools)
        arrays[f"m{place}_bias"] = np.array([*state.bias, state.offset])
        arrays[f"m{place}_losses"] = np.array([state.median.losses, state.high.losses])
        if state.line is not None:
            arrays[f"m{place}_weights"] = state.line.weights.copy()
            arrays[f"m{place}_covariance"] = state.line.covariance.astype(np.float32)
            arrays[f"m{place}_spread"] = np.array([state.line.spread])
    return models, arrays


def restore(predictor: HistoryPredictor, models: list[dict[str, object]], arrays: Arrays) -> None:
    """Take what `state_arrays` gave instead of what `predictor` has learned."""
    predictor.table.load(_rows(arrays))
    predictor.models.clear()
    for place, scalars in enumerate(models):
        name = str(scalars["name"])
        predictor.models[name] = _model(predictor.fresh(name), place, scalars, arrays)


def _model(state: ModelState, place: int, scalars: Mapping[str, object], arrays: Arrays) -> ModelState:
    state.root = int(str(scalars["root"]))
    state.swaps = int(str(scalars["swaps"]))
    state.seen = int(str(scalars["seen"]))
    state.pools = arrays[f"m{place}_pools"].tolist()
    *state.bias, state.offset = arrays[f"m{place}_bias"].tolist()
    state.median.restore(arrays[f"m{place}_losses"][0].tolist())
    state.high.restore(arrays[f"m{place}_losses"][1].tolist())
    if f"m{place}_weights" in arrays:
        state.line = LeastSquares(
            np.array(arrays[f"m{place}_weights"], np.float64),
            np.array(arrays[f"m{place}_covariance"], np.float64),
            float(arrays[f"m{place}_spread"][0]),
        )
    return state


def _rows(arrays: Arrays) -> Rows:
    values = np.asarray(arrays["row_values"], np.float32)
    return Rows(arrays["row_keys"].tolist(), values.ravel().tolist())
