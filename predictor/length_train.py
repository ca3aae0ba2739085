"""Shell: train the text prior (scikit-learn), then rehearse the predictor on the same rows, out of fold.

The prior's targets are log tokens above the usual of their stream, averaged over the answers to one prompt.
In the rehearsal each row is read by a prior that was not fitted on its prompt, so that the line and the pool
learn to trust the prior as much as it deserves on prompts it has not seen.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from joulegate.domain import Cuts, LengthQuery
from joulegate.errors import UserError
from predictor.artifact import Artifact, data_hash
from predictor.experts_rls import TARGETS
from predictor.features import HEAD, NAMES, TAIL, numbers_of, templates_of, text_of, words_of
from predictor.length import ModelState
from predictor.length_data import Row, alias
from predictor.length_prior import SCORES, SLOTS, ZERO, TextPrior, Trees, slots_of
from predictor.length_state import prior_arrays, state_arrays
from predictor.length_text import FEATURES, POOLS, Reading, Start, TextPredictor

FOLDS = 5
LEAST_PROMPTS = 100
FLAT = 1e-9  # log tokens
RIDGE = 1.0
TREES, LEAVES = 8, 15  # what can be served in tens of microseconds
LEARNING_RATE = 0.4
REPTILE = 0.1  # share of the way to a stream's weights that the start moves
PIECE = 150  # completions of a short stream
WEIGHTS_KEPT = 0.9998  # share of the n-gram weights that a byte holds without cutting them off
CAPACITY = 2_000_000  # rows while rehearsing: nothing is forgotten
LINE_VARIANCE = 0.1  # of a line's weights before a model is known
BIAS_VARIANCE = 5.0
MANY_MODELS = 10
LEAST_VARIANCE = 0.01
NOISE = 0.8  # variance of the log residual that the spread of the weights is told in
Floats = NDArray[np.float64]
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Each distinct prompt once: what is read of it, and its target."""

    ids: list[str]
    words: list[list[bytes]]
    numbers: Floats  # (n, len(NAMES))
    targets: Floats  # log tokens above the usual
    weights: Floats  # square root of how many answers it has
    folds: NDArray[np.int64]


def trained(rows: Sequence[Row], prior_only: bool, rng: np.random.Generator, progress: Progress) -> Artifact:
    """Fit the prior, rehearse, and say in the header what it was learned from."""
    prompts = _prompts(rows)
    if len(prompts.ids) < LEAST_PROMPTS:
        raise UserError(
            f"{len(prompts.ids)} different prompts to learn from, once a fifth is kept back for judging",
            f"give at least {LEAST_PROMPTS}",
        )
    progress(0.1, "prior")
    prior, scores = _fit_out_of_fold(prompts, progress)
    readings = _readings(rows, prompts, scores)
    start = _warmed(rows, prior, readings, rng)
    progress(0.7, "rehearsal")
    predictor = Rehearsal(prior, start, readings)
    for place, row in enumerate([] if prior_only else rows):
        query = row.sample.query
        predictor.observe(query, predictor.predict(query), row.sample.output_tokens)
        if place % 1000 == 0:
            progress(0.7 + 0.3 * place / len(rows), f"rehearsal, {place} of {len(rows)}")
    models, state = state_arrays(predictor)
    header = {
        "rows": len(rows),
        "prompts": len(prompts.ids),
        "sources": _by_source(rows),
        "features": list(NAMES),
        "characters": [HEAD, TAIL],
        "data_sha256": data_hash(f"{r.prompt_id} {r.sample.output_tokens}\n".encode() for r in rows),
        "score_correlation": _correlation(scores[:, 1], prompts.targets),
        "output_tokens_range": [
            min(r.sample.output_tokens for r in rows),
            max(r.sample.output_tokens for r in rows),
        ],
        "models": models,
    }
    return Artifact(header, {**prior_arrays(prior, start), **state})


def _correlation(said: Floats, true: Floats) -> float:
    """0 where one of them is always the same."""
    if min(np.ptp(said), np.ptp(true)) < FLAT:
        return 0.0
    return float(np.corrcoef(said, true)[0, 1])


def _by_source(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for row in rows:
        entry = found.setdefault(row.stream.source, {"rows": 0, "licence": row.licence})
        entry["rows"] = int(str(entry["rows"])) + 1
    return found


def _prompts(rows: Sequence[Row]) -> Prompts:
    lengths: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        lengths[alias(row.stream)].append(log(row.sample.output_tokens + 1.0))
    usual = {stream: sum(values) / len(values) for stream, values in lengths.items()}
    above: dict[str, list[float]] = defaultdict(list)
    query: dict[str, LengthQuery] = {}
    for row in rows:
        above[row.prompt_id].append(log(row.sample.output_tokens + 1.0) - usual[alias(row.stream)])
        query[row.prompt_id] = row.sample.query
    ids = list(above)
    texts = [text_of(query[i]) for i in ids]
    words = [words_of(text) for text in texts]
    return Prompts(
        ids,
        words,
        np.array([numbers_of(query[i], text, w) for i, text, w in zip(ids, texts, words, strict=True)]),
        np.array([sum(above[i]) / len(above[i]) for i in ids]),
        np.array([sqrt(len(above[i])) for i in ids]),
        np.arange(len(ids)) % FOLDS,
    )


def _fit_out_of_fold(prompts: Prompts, progress: Progress) -> tuple[TextPrior, Floats]:
    """The prior fitted on everything, and for each prompt the two scores of one that did not see it."""
    table = _table(prompts.words)
    scores = np.zeros((len(prompts.ids), SCORES))
    for fold in range(FOLDS):
        inside = prompts.folds == fold
        scores[inside, 0] = _ridge(table, prompts, ~inside).predict(table[inside])
    stacked = np.column_stack([prompts.numbers, scores[:, 0]])
    for fold in range(FOLDS):
        inside = prompts.folds == fold
        scores[inside, 1] = _boosted(stacked, prompts, ~inside).predict(stacked[inside])
        progress(0.1 + 0.1 * fold, f"prior, fold {fold + 1} of {FOLDS}")
    everything = np.ones(len(prompts.ids), bool)
    ridge = _ridge(table, prompts, everything)
    trees = flat(_boosted(stacked, prompts, everything))
    weights, unit = quantised(ridge.coef_)
    return TextPrior(weights, unit, float(ridge.intercept_), trees), scores


def quantised(weights: Floats) -> tuple[bytes, float]:
    """Weights as bytes above ZERO, and what one step is worth; the few largest are cut off."""
    unit = max(float(np.quantile(np.abs(weights), WEIGHTS_KEPT)), 1e-9) / (ZERO - 1)
    steps = np.clip(np.rint(weights / unit), -ZERO, ZERO - 1) + ZERO
    return steps.astype(np.uint8).tobytes(), unit


def _table(words: Sequence[Sequence[bytes]]) -> csr_array:
    """One row a prompt: its slots, at unit length."""
    indices, data, pointers = [], [], [0]
    for prompt in words:
        slots = slots_of(prompt)
        indices += slots
        data += [len(slots) ** -0.5] * len(slots)
        pointers.append(len(indices))
    table = csr_array((data, indices, pointers), shape=(len(words), SLOTS))
    table.sum_duplicates()
    return table


def _ridge(table: csr_array, prompts: Prompts, inside: NDArray[np.bool_]) -> Ridge:
    return Ridge(alpha=RIDGE).fit(
        table[inside], prompts.targets[inside], sample_weight=prompts.weights[inside]
    )


def _boosted(x: Floats, prompts: Prompts, inside: NDArray[np.bool_]) -> HistGradientBoostingRegressor:
    model = HistGradientBoostingRegressor(
        max_iter=TREES,
        max_leaf_nodes=LEAVES,
        learning_rate=LEARNING_RATE,
        min_samples_leaf=20,
        random_state=0,
    )
    return model.fit(x[inside], prompts.targets[inside], sample_weight=prompts.weights[inside])


def flat(model: HistGradientBoostingRegressor) -> Trees:
    """scikit-learn's trees as plain lists; they have no categorical columns and meet no missing values."""
    roots: list[int] = []
    feature: list[int] = []
    threshold: list[float] = []
    left: list[int] = []
    right: list[int] = []
    for (tree,) in model._predictors:
        offset = len(feature)
        roots.append(offset)
        for node in tree.nodes:
            leaf = bool(node["is_leaf"])
            feature.append(-1 if leaf else int(node["feature_idx"]))
            threshold.append(float(node["value"] if leaf else node["num_threshold"]))
            left.append(offset + int(node["left"]))
            right.append(offset + int(node["right"]))
    return Trees(roots, feature, threshold, left, right, float(np.ravel(model._baseline_prediction)[0]))


class Rehearsal(TextPredictor):
    """Reads prompts as they were read out of fold, and forgets no key."""

    def __init__(self, prior: TextPrior, start: Start, readings: Mapping[tuple[str, str], Reading]) -> None:
        super().__init__(Cuts(), prior, start, CAPACITY)
        self._readings = readings

    def read(self, query: LengthQuery) -> Reading:
        return self._readings[query.text_head, query.text_tail]


def _readings(rows: Sequence[Row], prompts: Prompts, scores: Floats) -> dict[tuple[str, str], Reading]:
    place = {prompt: i for i, prompt in enumerate(prompts.ids)}
    out = {}
    for row in rows:
        query, i = row.sample.query, place[row.prompt_id]
        features = [*prompts.numbers[i].tolist(), *scores[i].tolist()]
        out[query.text_head, query.text_tail] = Reading(
            templates_of(text_of(query), prompts.words[i]), features
        )
    return out


def _warmed(
    rows: Sequence[Row],
    prior: TextPrior,
    readings: Mapping[tuple[str, str], Reading],
    rng: np.random.Generator,
) -> Start:
    """Weights that suit a model never seen: what many short streams, each of a new model, leave behind.

    Every stream is shuffled and cut into pieces; every other piece knows its tenants.
    """
    streams: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        streams[alias(row.stream)].append(row)
    pieces = [
        (name, [stream[place] for place in piece], number % 2 == 1)
        for name, stream in streams.items()
        for number, piece in enumerate(
            np.array_split(rng.permutation(len(stream)), max(1, len(stream) // PIECE))
        )
    ]
    start = _untrained_start()
    ends: dict[str, list[Floats]] = defaultdict(list)
    for place in rng.permutation(len(pieces)):
        name, piece, tenants = pieces[place]
        state = _taught(Rehearsal(prior, start, readings), piece, tenants)
        start = replace(start, pools=tuple(map(tuple, state.pools)))
        if state.line is not None:
            ends[name].append(state.line.weights)
            start = replace(start, weights=_nearer(start.weights, state.line.weights))
    return _spread(start, [np.mean(weights, axis=0) for weights in ends.values()])


def _taught(predictor: TextPredictor, piece: Sequence[Row], tenants: bool) -> ModelState:
    """The state of a new model after one short stream."""
    for row in piece:
        key = row.sample.query.key if tenants else ""
        query = replace(row.sample.query, model="new", key=key)
        predictor.observe(query, predictor.predict(query), row.sample.output_tokens)
    return predictor.state_of("new")


def _nearer(weights: Floats, end: Floats) -> Floats:
    """A step from the start towards where this stream ended (Reptile: Nichol et al., 2018)."""
    moved = weights + REPTILE * (end - weights)
    moved[:, 0] = weights[:, 0]
    return moved


def _spread(start: Start, ends: Sequence[Floats]) -> Start:
    """The variance of each weight between models, where there are enough models to tell."""
    if len(ends) < MANY_MODELS:
        return start
    variance = np.clip(
        np.var([weights[0] for weights in ends], axis=0) / NOISE, LEAST_VARIANCE, LINE_VARIANCE
    )
    variance[0] = BIAS_VARIANCE
    return replace(start, variance=variance)


def _untrained_start() -> Start:
    """Broad: the usual length is 150 tokens give or take a lot, the classes equally likely."""
    weights = np.zeros((TARGETS, FEATURES))
    weights[:, 0] = (log(150.0), 1 / 3, 1 / 3)
    variance = np.full(FEATURES, LINE_VARIANCE)
    variance[0] = BIAS_VARIANCE
    voices = len(TextPredictor.voices)
    pool = (1.4 / voices,) * voices
    return Start(weights, variance, 1.0, (pool,) * POOLS)
