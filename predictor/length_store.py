"""Shell: length predictors from and to disk: a trained prior, and what a predictor has learned since.

An artifact of SCHEMA holds the prior (n-grams, trees), the start of a new model's line, and a state: rows,
and per model what ModelState holds. Conversations in progress are not kept.
"""

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

from joulegate.domain import Cuts
from predictor.artifact import Artifact, load, save
from predictor.length import HistoryPredictor
from predictor.length_state import prior_arrays, prior_of, restore, state_arrays
from predictor.length_text import TextPredictor

SCHEMA = "joulegate-length/4"
SHIPPED = "length_prior.npz"


def shipped() -> Artifact:
    """The prior that comes with Joulegate; see docs/length-prediction.md for what it was trained on."""
    with as_file(files("predictor") / "data" / SHIPPED) as path:
        return load(path, SCHEMA)


def factory(cuts: Cuts, model: Path | None, use_prior: bool) -> Callable[[], HistoryPredictor]:
    """Makes predictors that know what the artifact knows and nothing of each other."""
    if not use_prior and model is None:
        return lambda: HistoryPredictor(cuts)
    artifact = shipped() if model is None else load(model, SCHEMA)
    prior, start = prior_of(artifact.arrays)
    models = artifact.header.get("models")

    def make() -> HistoryPredictor:
        predictor = TextPredictor(cuts, prior, start)
        if isinstance(models, list):
            restore(predictor, models, artifact.arrays)
        return predictor

    return make


def save_learned(path: Path, predictor: TextPredictor) -> None:
    """Everything `predictor` knows, prior and state, as an artifact that `factory` reads."""
    models, arrays = state_arrays(predictor)
    save(
        path,
        SCHEMA,
        Artifact({"models": models}, {**prior_arrays(predictor.prior, predictor.start), **arrays}),
    )
