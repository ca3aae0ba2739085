"""Pure: output length of a request from what was seen before; the first predictor every gateway has.

`HistoryPredictor(cuts, capacity)` satisfies `joulegate.domain.LengthPredictor` with nothing trained: it
starts from a broad guess and learns from completions. `predictor.length_text.TextPredictor` adds text to it.

A prediction pools the levels of `predictor.history` (model -> key -> system prompt -> input-length bucket ->
session parent) by log-loss, moves q90 until a tenth of the answers exceed it (a conformal offset, per model),
and caps everything at `max_tokens`. When a model is swapped behind its name its answers stop fitting: tests
on the log-loss and on the log length notice, and that model's rows are left behind.

Lengths are tokens of one choice: with n > 1 divide the usage by n before `observe`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log1p, log2
from operator import itemgetter
from zlib import crc32

from joulegate.domain import Cuts, LengthPrediction, LengthQuery
from predictor.experts import Classes, Odds, QuantilePool, learn_pool, pooled
from predictor.experts_rls import Inputs, LeastSquares
from predictor.history import (
    LEVELS,
    LOG50,
    LOG90,
    QUANTILE_VOICES,
    VOICES,
    Estimate,
    KeyTable,
    Level,
    estimates,
    join,
    plan_of,
)
from predictor.length_drift import Drift
from predictor.length_survival import remaining

CAPACITY = 160_000  # rows of about 260 bytes
MODELS = 256  # models with a pool of their own; more are forgotten, least recently learned first
TURNS = 20_000  # conversations whose last answer is remembered
TARGET_OVER = 0.1  # share of answers that may exceed q90
OFFSET_STEP = 0.1  # of the conformal offset, in log tokens
START_WEIGHT = 1.4  # sum of the pool's weights before anything is learned
EXACT = 7  # estimate of the finest input length; how often it was seen chooses the weights
OWNERS = 256  # keys and system prompts whose hashes are at hand
IN_FLIGHT = 2048  # requests whose thoughts are kept until their answer ends


@dataclass(slots=True)
class ModelState:
    """What is learned about one model besides its rows."""

    root: int  # every key of this model is made from it
    pools: list[list[float]]  # class weights, by evidence
    bias: list[float]
    median: QuantilePool
    high: QuantilePool
    drift: Drift = field(default_factory=Drift)
    swaps: int = 0  # how often another model was noticed behind the name
    offset: float = 0.0  # added to log q90
    seen: int = 0  # completions
    line: LeastSquares | None = None  # over the text's features, where text is read


@dataclass(slots=True)
class Thought:
    """What a prediction was made of: kept until the answer's length is known, to learn from."""

    query: LengthQuery
    state: ModelState
    keys: list[int]
    said: list[Estimate]  # the base first
    pool: list[float]  # the weights used
    odds: list[Odds]  # of the voices
    classes: Classes  # pooled
    middle: float  # log tokens: the median
    high: float  # and, before the conformal offset, what a tenth of the answers exceed
    inputs: Inputs | None = None  # of the line, where text is read


class HistoryPredictor:
    """Learns output lengths by model, key, system prompt, input length and conversation. No text."""

    levels: Sequence[Level] = LEVELS
    voices: Sequence[int] = VOICES  # estimates pooled for the classes
    quantile_voices: Sequence[int] = QUANTILE_VOICES

    def __init__(self, cuts: Cuts, capacity: int = CAPACITY) -> None:
        self.cuts = cuts
        self.table = KeyTable(capacity)
        self.models: OrderedDict[str, ModelState] = OrderedDict()
        self.turns: OrderedDict[int, int] = OrderedDict()  # turn -> half-octave of its answer
        self._thoughts: OrderedDict[int, Thought] = OrderedDict()  # by id of the query, which they hold
        self._plan = plan_of(LEVELS)
        self._said_by = itemgetter(*self.voices)
        self._quantiles_by = itemgetter(*self.quantile_voices)
        self._owner = lru_cache(OWNERS)(owner)

    def predict(self, query: LengthQuery) -> LengthPrediction:
        """What is known of the answer's length; what it was made of is kept for `observe`."""
        return self.answer(self.kept(self.think(query)))

    def remaining(self, query: LengthQuery, prediction: LengthPrediction, generated: int) -> LengthPrediction:
        """The same prediction once `generated` tokens are out: tokens still to come."""
        return remaining(self.cuts, prediction, generated, query.max_tokens)

    def observe(self, query: LengthQuery, prediction: LengthPrediction, output_tokens: int) -> None:
        """Learn from one completed choice. One cut off by `max_tokens` teaches only "at least so long"."""
        thought = self._thoughts.pop(id(query), None)
        if thought is None or thought.query is not query:
            thought = self.think(query)
        tokens = output_tokens
        if query.max_tokens is not None and tokens >= query.max_tokens:
            tokens = max(tokens, int(exp(thought.middle) - 1.0))
        log_tokens = log1p(tokens)
        self.learn(thought, int(self.cuts.output_size(tokens)), log_tokens)
        if thought.state is self.models.get(query.model):
            self.models.move_to_end(query.model)
        turn = query.turn or query.parent
        if turn:
            self.turns[turn] = int(log_tokens * 2.885)
            self.turns.move_to_end(turn)
            if len(self.turns) > TURNS:
                self.turns.popitem(last=False)

    def kept(self, thought: Thought) -> Thought:
        """Kept for `observe`, while fewer than IN_FLIGHT newer ones are."""
        self._thoughts[id(thought.query)] = thought
        if len(self._thoughts) > IN_FLIGHT:
            self._thoughts.popitem(last=False)
        return thought

    def think(self, query: LengthQuery) -> Thought:
        """Every expert's opinion."""
        state = self.state_of(query.model)
        keys = self.keys(query, state)
        said = estimates(self.table, self._plan, keys)
        weight = said[EXACT][5]
        pool = state.pools[(weight > 0.5) + (weight > 1.5) + (weight > 2.5)]
        return self.pool(query, state, keys, said, pool, None)

    def pool(
        self,
        query: LengthQuery,
        state: ModelState,
        keys: list[int],
        said: list[Estimate],
        weights: list[float],
        inputs: Inputs | None,
    ) -> Thought:
        """One opinion out of what was said."""
        classes, odds = pooled(weights, state.bias, self._said_by(said))
        middle = high = 0.0
        voices = self._quantiles_by(said)
        for voice, low, up in zip(voices, state.median.weights, state.high.weights, strict=True):
            middle += low * voice[3]
            high += up * voice[4]
        return Thought(query, state, keys, said, weights, odds, classes, middle, high, inputs)

    def answer(self, thought: Thought) -> LengthPrediction:
        q50, q90 = exp(thought.middle) - 1.0, exp(thought.high + thought.state.offset) - 1.0
        return capped(self.cuts, q50, q90, thought.classes, thought.query.max_tokens)

    def learn(self, thought: Thought, size: int, log_tokens: float) -> None:
        """One completion into the pools, the conformal offset, the rows and the watch for swaps."""
        state, said = thought.state, thought.said
        loss = learn_pool(thought.pool, state.bias, thought.odds, thought.classes, size)
        # by the offset of now: hundreds in flight were predicted by an older one, and it would swing
        state.offset += OFFSET_STEP * ((log_tokens > thought.high + state.offset) - TARGET_OVER)
        voices = self._quantiles_by(said)
        state.median.learn(voices, LOG50, log_tokens)
        state.high.learn(voices, LOG90, log_tokens)
        self.table.learn(self.levels, thought.keys, said, size, log_tokens)
        state.seen += 1
        if state.drift.changed(loss, log_tokens - thought.middle):
            self.forget(state)

    def forget(self, state: ModelState) -> None:
        """The model behind the name was swapped: its rows are left to the LRU, its pool is kept."""
        state.root = join(state.root, 1)
        state.swaps += 1
        state.offset = 0.0
        state.drift = Drift()

    def state_of(self, model: str) -> ModelState:
        state = self.models.get(model)
        if state is None:
            state = self.enter(model, self.fresh(model))
        return state

    def enter(self, model: str, state: ModelState) -> ModelState:
        """Believe this about a model."""
        self.models[model] = state
        if len(self.models) > MODELS:
            self.models.popitem(last=False)
        return state

    def fresh(self, model: str) -> ModelState:
        """What is believed about a model never seen."""
        experts, quantiles = len(self.voices), len(self.quantile_voices)
        return ModelState(
            root_of(model, 0),
            [[START_WEIGHT / experts] * experts for _ in range(4)],
            [0.0, 0.0, 0.0],
            QuantilePool(quantiles, 0.5),
            QuantilePool(quantiles, 0.9),
        )

    def keys(self, query: LengthQuery, state: ModelState) -> list[int]:
        """A key for each of LEVELS; 0 where the request has nothing to say.

        Under one owner a key is the owner (well mixed) xor its level and a value below 2^44.
        """
        model = state.root
        key, system = self._owner(model, query.key, query.system_hash)
        who = system or key or model
        octaves = log2(query.input_tokens + 1.0)
        turn = self.turns.get(query.parent) if query.parent else None
        return [
            model,
            model ^ 1,
            key,
            system,
            who ^ (4 << 44 | int(octaves * 4.0)),
            who ^ (5 << 44 | int(octaves * 12.0)),
            who ^ (6 << 44 | query.input_tokens),
            who ^ (7 << 44 | turn) if turn is not None else 0,
        ]


def owner(root: int, name: str, system_hash: int) -> tuple[int, int]:
    """Keys of an API key's rows and of its system prompt's; 0 where there is none."""
    key = join(root, crc32(name.encode())) if name else 0
    return key, join(key or root, system_hash) if system_hash else 0


def root_of(model: str, swaps: int) -> int:
    """What every key of a model is made from; another after each swap. The same in every process."""
    root = join(crc32(model.encode()))
    for _ in range(swaps):
        root = join(root, 1)
    return root


def capped(cuts: Cuts, q50: float, q90: float, classes: Classes, cap: int | None) -> LengthPrediction:
    """`max_tokens` is a bound: no quantile beyond it, no probability above its class."""
    q50 = q50 if q50 > 1.0 else 1.0
    q90 = q90 if q90 > q50 else q50
    if cap is None:
        return LengthPrediction(q50, q90, classes)
    short, medium, long = classes
    if cap < cuts.output[0]:
        classes = (1.0, 0.0, 0.0)
    elif cap < cuts.output[1]:
        classes = (short, medium + long, 0.0)
    bound = float(max(cap, 1))
    return LengthPrediction(min(q50, bound), min(q90, bound), classes)


def chosen_size(prediction: LengthPrediction, under_cost: float) -> int:
    """The class of least expected cost: `under_cost` per step too low, 1 per step too high (papers §1.6)."""
    short, medium, long = prediction.classes
    costs = (under_cost * (medium + 2.0 * long), short + under_cost * long, 2.0 * short + medium)
    return costs.index(min(costs))
