"""The full predictor: the text prior and its trees, the online line, what is read and when."""

import random
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor

from joulegate.domain import Cuts, LengthQuery, Size
from predictor.experts_rls import TARGETS, LeastSquares
from predictor.features import (
    HEAD,
    NAMES,
    TAIL,
    ends,
    numbers_of,
    shown,
    templates_of,
    text_of,
    wishes_of,
    words_of,
)
from predictor.length_prior import SLOTS, ZERO, slots_of
from predictor.length_store import factory
from predictor.length_text import FEATURES, Reading, TextPredictor
from predictor.length_train import flat, quantised

CUTS = Cuts()


def shipped() -> TextPredictor:
    predictor = factory(CUTS, None, use_prior=True)()
    assert isinstance(predictor, TextPredictor)
    return predictor


def asked(prompt: str, key: str = "", tokens: int = 0) -> LengthQuery:
    head, tail = ends(prompt)
    return LengthQuery("m", key, tokens or len(prompt) // 4 + 1, text_head=head, text_tail=tail)


def test_the_shipped_prior_expects_more_of_an_essay_than_of_a_choice() -> None:
    predictor = shipped()
    essay = asked("Write a detailed blog article about the history of computing, with examples.")
    choice = asked("Is the following sentence positive or negative? Answer with one word: I like it.")
    for query, tokens in ((essay, 700), (choice, 3)) * 2:
        predictor.observe(query, predictor.predict(query), tokens)
    later = asked("Write a comprehensive article about the future of farming, with examples.")
    short = asked("Is this tweet positive or negative? Answer with one word: It rains again.")
    assert predictor.predict(later).q50 > 2 * predictor.predict(short).q50


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Describe the sea in 50 words.", 70.0),
        ("Describe the sea in two paragraphs of three sentences.", 220.0),
        ("Describe the sea in one sentence.", 25.0),
        ("Describe the words of the sea.", 0.0),
        ("In 123456 words.", 0.0),
    ],
)
def test_the_amount_that_is_asked_for_is_read(prompt: str, tokens: float) -> None:
    query = asked(prompt)
    numbers = numbers_of(query, text_of(query), words_of(text_of(query)))
    assert numbers[NAMES.index("asked")] == pytest.approx(log(tokens + 1.0) / 6.0)
    assert numbers[NAMES.index("asks_amount")] == (tokens > 0.0)


def test_what_is_wished_for_is_read_at_the_ends_not_in_what_was_pasted_between() -> None:
    pasted = "the river was quiet " * 20
    words = words_of(f"Translate the following. {pasted} poem {pasted} thank you".encode())
    found = dict(zip(NAMES[-len(wishes_of(words)) :], wishes_of(words), strict=True))
    assert found["has_letter"] == 0.0
    assert found["has_rewrite"] == 1.0
    at_the_end = wishes_of(words_of(f"{pasted} Now write a poem about it".encode()))
    assert dict(zip(NAMES[-len(at_the_end) :], at_the_end, strict=True))["has_letter"] == 1.0


def test_how_many_is_not_how_to() -> None:
    place = NAMES.index("how_many") - len(NAMES)
    assert wishes_of([b"how", b"many", b"rivers"])[place] == 1.0
    assert wishes_of([b"how", b"to", b"swim"])[place] == 0.0
    assert wishes_of([b"tell", b"me", b"how"])[place] == 0.0
    assert wishes_of([])[place] == 0.0


def test_a_kind_of_prompt_is_learned_without_any_key() -> None:
    rng = random.Random(2)
    predictor = shipped()
    for number in range(150):
        word = rng.choice(("apples", "rivers", "planets", "engines"))
        pair = (
            (f"Translate to French: the {word} {number}", 12),
            (f"Explain in depth how {word} work {number}", 600),
        )
        for prompt, tokens in pair:
            query = asked(prompt)
            predictor.observe(query, predictor.predict(query), tokens)
    short, long = (
        predictor.predict(asked(p))
        for p in ("Translate to French: the castle", "Explain in depth how castles work")
    )
    assert short.classes[Size.S] > 0.8
    assert long.classes[Size.L] > 0.8


class Reads(TextPredictor):
    reads = 0

    def read(self, query: LengthQuery) -> Reading:
        self.reads += 1
        return super().read(query)


def test_a_settled_history_answers_without_reading_the_text() -> None:
    base = shipped()
    predictor = Reads(CUTS, base.prior, base.start)
    for number in range(60):
        query = asked(f"Say yes {number}", key="k", tokens=9)
        predictor.observe(query, predictor.predict(query), 5)
    before = predictor.reads
    assert predictor.predict(asked("Say yes now", key="k", tokens=9)).classes[Size.S] > 0.95
    assert predictor.reads == before


def test_a_request_without_text_is_predicted_too() -> None:
    prediction = shipped().predict(LengthQuery("m", "", 500))
    assert sum(prediction.classes) == pytest.approx(1.0)
    assert 1 <= prediction.q50 <= prediction.q90


def test_learning_from_a_request_still_in_flight_costs_no_second_reading() -> None:
    base = shipped()
    predictor = Reads(CUTS, base.prior, base.start)
    query = asked("Tell me a story")
    predictor.observe(query, predictor.predict(query), 300)
    assert predictor.reads == 1


def test_a_request_forgotten_meanwhile_still_teaches() -> None:
    predictor = shipped()
    first = asked("What is the capital of France?")
    prediction = predictor.predict(first)
    for number in range(2100):
        predictor.predict(asked(f"question {number}"))
    predictor.observe(first, prediction, 5)
    assert predictor.models["m"].seen == 1


@given(st.text(max_size=3000), st.integers(0, 10**6), st.none() | st.integers(1, 10**6))
def test_any_text_gives_finite_features_of_one_shape(text: str, tokens: int, cap: int | None) -> None:
    head, tail = ends(text)
    query = LengthQuery("m", "", tokens, max_tokens=cap, text_head=head, text_tail=tail)
    read = text_of(query)
    words = words_of(read)
    numbers = numbers_of(query, read, words)
    assert len(numbers) == len(NAMES)
    assert np.isfinite(numbers).all()
    assert len(templates_of(read, words)) == 5
    assert slots_of(words)


def test_the_ends_of_a_message_do_not_overlap() -> None:
    text = "".join(chr(97 + i % 26) for i in range(HEAD + TAIL // 2))
    head, tail = ends(text)
    assert head + tail == text
    assert ends("short") == ("short", "")
    head, tail = ends("x" * 5000)
    assert (len(head), len(tail)) == (HEAD, TAIL)


@given(st.text(alphabet="ab \n?", max_size=4000))
def test_longer_and_overlapping_ends_are_read_as_the_same_text(message: str) -> None:
    wide = LengthQuery("m", "", 1, text_head=message[:1600], text_tail=message[-800:])
    narrow = LengthQuery("m", "", 1, text_head=ends(message)[0], text_tail=ends(message)[1])
    repeats = message[:1600].endswith(message[-800:]) and len(message) > 1600
    assert shown(wide) == ends(message) or repeats
    assert shown(narrow) == ends(message) or narrow.text_head.endswith(narrow.text_tail)


def test_flat_trees_say_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5))
    model = HistGradientBoostingRegressor(max_iter=10, max_leaf_nodes=15)
    model.fit(x, x[:, 0] * np.sin(x[:, 1]) + rng.normal(size=500) * 0.1)
    trees = flat(model)
    assert [trees.value(row) for row in x[:50].tolist()] == pytest.approx(model.predict(x[:50]).tolist())


def test_the_line_finds_the_weights_that_made_the_lengths() -> None:
    rng = np.random.default_rng(4)
    true = np.array([4.0, 1.0, -0.5])
    line = LeastSquares(np.zeros((TARGETS, 3)), np.eye(3) * 10.0, 1.0)
    for _ in range(400):
        x = np.array([1.0, *rng.normal(size=2)])
        line.learn(x, 1, float(true @ x))
    assert line.weights[0] == pytest.approx(true, abs=0.05)


@pytest.mark.parametrize(("doubts", "followed"), [(True, True), (False, False)])
def test_a_line_in_doubt_follows_a_new_level_within_a_few_answers(doubts: bool, followed: bool) -> None:
    rng = np.random.default_rng(6)
    line = LeastSquares(np.zeros((TARGETS, 3)), np.eye(3) * 0.1, 1.0)
    for place in range(310):
        x = np.array([1.0, *rng.normal(size=2)])
        if doubts and place >= 300:
            line.doubt()
        line.learn(x, 1, 5.0 if place < 300 else 6.0)
    assert (float(line.weights[0, 0]) > 5.8) == followed


def test_the_line_stays_finite_when_one_request_repeats_forever() -> None:
    predictor = shipped()
    line = predictor.fresh_line()
    x = np.array([1.0] + [0.3] * (FEATURES - 1))
    for _ in range(20_000):
        line.learn(x, 0, 2.0)
    assert np.isfinite(line.covariance).all()
    assert float(line.covariance.trace()) <= 2 * float(predictor.fresh_line().covariance.trace())
    assert line.weights[0] @ x == pytest.approx(2.0, abs=0.01)


def test_the_lines_classes_are_probabilities() -> None:
    line = shipped().fresh_line()
    for said in line.say(np.ones(FEATURES), (4.6, 5.86)):
        assert sum(said[:3]) == pytest.approx(1.0)
        assert min(said[:3]) >= 0.0
        assert said[3] < said[4]


def test_the_bytes_of_the_ngram_weights_say_what_the_weights_said() -> None:
    weights = np.random.default_rng(5).normal(size=SLOTS)
    packed, unit = quantised(weights)
    read = unit * (np.frombuffer(packed, np.uint8) - float(ZERO))
    kept = np.abs(weights) < unit * (ZERO - 1)
    assert kept.mean() > 0.999
    assert np.abs(read - weights)[kept].max() <= 0.51 * unit


def test_text_in_any_script_has_words() -> None:
    assert words_of(b"Hello, WORLD 3x!") == [b"hello", b"world", b"3x"]
    assert len(words_of("напиши мне рассказ".encode())) == 3
