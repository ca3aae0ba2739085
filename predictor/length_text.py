"""Pure: the full length predictor: history, templates seen in the text, and a text prior corrected online.

`TextPredictor(cuts, prior, start)` adds to `HistoryPredictor`: levels for what prompts of one template share,
and a linear model per model name (`experts_rls`) over the features of the text, the prior's four numbers and
what the history levels say. Where history alone is decided (DECISIVE) the text is not read.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from joulegate.domain import Cuts, LengthPrediction, LengthQuery
from predictor.experts_rls import LeastSquares
from predictor.features import NAMES, numbers_of, templates_of, words_of
from predictor.history import LEVELS, VOICES, Estimate, Level, extend, learn
from predictor.length import CAPACITY, EXACT, HistoryPredictor, ModelState, capped
from predictor.length_prior import SCORES, TextPrior

TEMPLATES = (
    Level("first_word", 1, 1.5, 0.98),
    Level("two_words", 9, 1.0, 0.97),
    Level("three_words", 10, 0.7, 0.95),
    Level("opening", 11, 0.5, 0.9),
    Level("shape", 1, 1.5, 0.98),
    Level("last_words", 1, 0.7, 0.95),
)
FIRST_MARK = 1 + len(LEVELS)
CONTEXT = (4, 5, 12, 13, 14)  # estimates whose difference from the model's own is a feature
FEATURES = len(NAMES) + SCORES + 1 + 2 * len(CONTEXT)
DECISIVE = 0.97  # probability of a class at which history needs no help
OWNER = 4  # estimate of the key and its system prompt
PHASES = (8, 25, 80)  # completions of a model at which other weights take over
POOLS = 2 * (len(PHASES) + 1)  # by phase, without and with an owner
SETTLED = 30.0  # completions of an owner before its history may settle a request alone
READ = 2048  # requests in flight whose text has been read already


@dataclass(frozen=True, slots=True)
class Start:
    """Where a model never seen starts: `weights` (TARGETS, FEATURES), their `variance`, the pools."""

    weights: NDArray[np.float64]
    variance: NDArray[np.float64]
    spread: float  # variance of the log residual
    pools: tuple[tuple[float, ...], ...]  # POOLS of them: a weight for each voice


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt, read once: the template hashes, and the features with the prior's numbers."""

    templates: tuple[int, int, int, int, int, int]
    features: list[float]


class TextPredictor(HistoryPredictor):
    """Learns from text as well. Same faces as HistoryPredictor."""

    voices = (*VOICES, 12, 13, 14, 15, 16)

    def __init__(self, cuts: Cuts, prior: TextPrior, start: Start, capacity: int = CAPACITY) -> None:
        super().__init__(cuts, capacity)
        self.prior = prior
        self.start = start
        self._log_cuts = (log(cuts.output[0]), log(cuts.output[1]))
        self._read: OrderedDict[int, tuple[LengthQuery, Reading]] = OrderedDict()

    def predict(self, query: LengthQuery) -> LengthPrediction:
        state = self.state_of(query.model)
        said = super().say(query, state)
        if said[OWNER][5] >= SETTLED and max(said[EXACT][:3]) >= DECISIVE:
            return self.settled(query, state, said[EXACT])
        return self.answer(query, state, self._with_text(query, state, said))

    def settled(self, query: LengthQuery, state: ModelState, known: Estimate) -> LengthPrediction:
        """What the history says by itself."""
        q50, q90 = exp(known[3]) - 1.0, exp(known[4] + state.offset) - 1.0
        free = LengthPrediction(max(1.0, q50), max(1.0, q50, q90), known[:3])
        return capped(self.cuts, free, query.max_tokens)

    def say(self, query: LengthQuery, state: ModelState) -> list[Estimate]:
        return self._with_text(query, state, super().say(query, state))

    def _with_text(self, query: LengthQuery, state: ModelState, said: list[Estimate]) -> list[Estimate]:
        extend(said, self.table, TEMPLATES, self._marks(query, state))
        if state.line is None:
            state.line = self.fresh_line()
        said += state.line.say(self._inputs(query, said), self._log_cuts)
        return said

    def learn_said(
        self, query: LengthQuery, state: ModelState, said: list[Estimate], size: int, log_tokens: float
    ) -> None:
        if state.line is not None:
            state.line.learn(self._inputs(query, said), size, log_tokens)
        super().learn_said(query, state, said, size, log_tokens)
        learn(self.table, TEMPLATES, self._marks(query, state), said, size, log_tokens)
        self._read.pop(id(query), None)

    def _marks(self, query: LengthQuery, state: ModelState) -> list[int]:
        """A key for each of TEMPLATES."""
        templates = self.read(query).templates
        return [
            state.root ^ ((FIRST_MARK + place) << 44 | mark) if mark else 0
            for place, mark in enumerate(templates)
        ]

    def forget(self, state: ModelState) -> None:
        super().forget(state)
        state.line = self.fresh_line()

    def fresh(self, model: str) -> ModelState:
        state = super().fresh(model)
        state.pools = [list(pool) for pool in self.start.pools]
        return state

    def pool_of(self, query: LengthQuery, state: ModelState, said: Sequence[Estimate]) -> list[float]:
        """Which set of weights: by how much the model has taught, and whether there is a key or prompt."""
        phase = sum([state.seen > border for border in PHASES])
        return state.pools[2 * phase + bool(query.key or query.system_hash)]

    def fresh_line(self) -> LeastSquares:
        start = self.start
        return LeastSquares(start.weights.copy(), np.diag(start.variance), start.spread)

    def read(self, query: LengthQuery) -> Reading:
        """Read the text once per request: what `predict` read is kept for `observe`, for READ requests."""
        kept = self._read.get(id(query))
        if kept is not None and kept[0] is query:
            return kept[1]
        words = words_of(query)
        numbers = numbers_of(query, words)
        reading = Reading(templates_of(query, words), numbers + self.prior.scores(words, numbers))
        self._read[id(query)] = (query, reading)
        if len(self._read) > READ:
            self._read.popitem(last=False)
        return reading

    def _inputs(self, query: LengthQuery, said: list[Estimate]) -> list[float]:
        """The text's features, then how far finer levels are from the model's own short and long shares."""
        short, _, long, _, _, _ = said[1]
        inputs = list(self.read(query).features)
        for place in CONTEXT:
            level = said[place]
            inputs += (level[0] - short, level[2] - long)
        return inputs
