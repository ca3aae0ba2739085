"""Pure: the full length predictor: history, templates seen in the text, and a text prior corrected online.

`TextPredictor(cuts, prior, start)` adds to `HistoryPredictor`: levels for what prompts of one template share,
and a linear model per model name (`experts_rls`) over the features of the text, the prior's two numbers and
what the history levels say. Where history alone is decided (DECISIVE) the text is not read.
"""

from dataclasses import dataclass
from math import exp, log
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from joulegate.domain import Cuts, LengthPrediction, LengthQuery
from predictor.experts_rls import Inputs, LeastSquares
from predictor.features import NAMES, numbers_of, templates_of, text_of, words_of
from predictor.history import LEVELS, Estimate, Level, estimates, plan_of
from predictor.length import CAPACITY, EXACT, HistoryPredictor, ModelState, Thought, capped
from predictor.length_prior import SCORES, TextPrior

TEMPLATES = (
    Level("first_word", 1, 1.5, 0.98),
    Level("three_words", 9, 1.0, 0.95),
    Level("opening", 10, 0.5, 0.9),
    Level("shape", 1, 1.5, 0.98),
    Level("last_words", 1, 0.7, 0.95),
)
MARKS = tuple(place << 44 for place in range(1 + len(LEVELS), 1 + len(LEVELS) + len(TEMPLATES)))
CONTEXT = (4, 5, 11, 12, 13)  # estimates whose difference from the model's own is a feature
FEATURES = len(NAMES) + SCORES + 2 * len(CONTEXT)
PACKED = Struct(f"{FEATURES}d").pack  # a third of the time that an array of doubles takes
TEXT_VOICES = (2, 4, 7, 8, 11, 13, 14, 15)
TEXT_QUANTILE_VOICES = (4, 7, 11, 14)
DECISIVE = 0.97  # probability of a class at which history needs no help
OWNER = 4  # estimate of the key and its system prompt
PHASES = (8, 25, 80)  # completions of a model at which other weights take over
POOLS = 2 * (len(PHASES) + 1)  # by phase, without and with an owner
SETTLED = 30.0  # completions of an owner before its history may settle a request alone


@dataclass(frozen=True, slots=True)
class Start:
    """Where a model never seen starts: `weights` (TARGETS, FEATURES), their `variance`, the pools."""

    weights: NDArray[np.float64]
    variance: NDArray[np.float64]
    spread: float  # variance of the log residual
    pools: tuple[tuple[float, ...], ...]  # POOLS of them: a weight for each voice


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt, read: the template hashes, and the features with the prior's scores."""

    templates: tuple[int, int, int, int, int]
    features: list[float]


class TextPredictor(HistoryPredictor):
    """Learns from text as well. Same faces as HistoryPredictor."""

    levels = LEVELS + TEMPLATES
    voices = TEXT_VOICES
    quantile_voices = TEXT_QUANTILE_VOICES

    def __init__(self, cuts: Cuts, prior: TextPrior, start: Start, capacity: int = CAPACITY) -> None:
        super().__init__(cuts, capacity)
        self.prior = prior
        self.start = start
        self._log_cuts = (log(cuts.output[0]), log(cuts.output[1]))
        self._template_plan = plan_of(TEMPLATES)

    def predict(self, query: LengthQuery) -> LengthPrediction:
        state = self.state_of(query.model)
        keys = self.keys(query, state)
        known = estimates(self.table, self._plan, keys)
        owner, finest = known[OWNER], known[EXACT]
        named = query.key or query.system_hash
        if named and owner[5] >= SETTLED and min(max(owner[:3]), max(finest[:3])) >= DECISIVE:
            q50, q90 = exp(finest[3]) - 1.0, exp(finest[4] + state.offset) - 1.0
            return capped(self.cuts, q50, q90, finest[:3], query.max_tokens)
        return self.answer(self.kept(self._with_text(query, state, keys, known)))

    def think(self, query: LengthQuery) -> Thought:
        state = self.state_of(query.model)
        keys = self.keys(query, state)
        return self._with_text(query, state, keys, estimates(self.table, self._plan, keys))

    def _with_text(
        self, query: LengthQuery, state: ModelState, keys: list[int], known: list[Estimate]
    ) -> Thought:
        """What the history knows, then what the text adds."""
        reading = self.read(query)
        root = state.root
        marks = [
            root ^ (level | mark) if mark else 0 for level, mark in zip(MARKS, reading.templates, strict=True)
        ]
        said = estimates(self.table, self._template_plan, marks, known)
        inputs = self._inputs(reading, said)
        line = state.line
        if line is None:
            line = state.line = self.fresh_line()
        said += line.say(inputs, self._log_cuts)
        seen = state.seen
        phase = (seen > PHASES[0]) + (seen > PHASES[1]) + (seen > PHASES[2])
        pool = state.pools[2 * phase + bool(query.key or query.system_hash)]
        return self.pool(query, state, keys + marks, said, pool, inputs)

    def learn(self, thought: Thought, size: int, log_tokens: float) -> None:
        state = thought.state
        if state.line is not None and thought.inputs is not None:
            state.line.learn(thought.inputs, size, log_tokens)
        super().learn(thought, size, log_tokens)
        if state.line is not None and state.drift.doubtful:
            state.line.doubt()

    def forget(self, state: ModelState) -> None:
        super().forget(state)
        if state.line is not None:  # texts that ask for more still do: keep what was learned, hold it loosely
            state.line.loosen(self.start.variance)

    def fresh(self, model: str) -> ModelState:
        state = super().fresh(model)
        state.pools = [list(pool) for pool in self.start.pools]
        return state

    def fresh_line(self) -> LeastSquares:
        start = self.start
        return LeastSquares(start.weights.copy(), np.diag(start.variance), start.spread)

    def read(self, query: LengthQuery) -> Reading:
        text = text_of(query)
        words = words_of(text)
        numbers = numbers_of(query, text, words)
        numbers += self.prior.scores(words, numbers)
        return Reading(templates_of(text, words), numbers)

    def _inputs(self, reading: Reading, said: list[Estimate]) -> Inputs:
        """The text's features, then how far finer levels are from the model's own short and long shares."""
        short, _, long, _, _, _ = said[1]
        inputs = reading.features.copy()
        for place in CONTEXT:
            level = said[place]
            inputs += (level[0] - short, level[2] - long)
        return np.frombuffer(PACKED(*inputs))
