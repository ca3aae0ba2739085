"""The history-only length predictor: what it learns, from whom it borrows, and what bounds it."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import Cuts, LengthPrediction, LengthQuery, Size
from predictor.history import BASE, LEVELS, KeyTable
from predictor.length import HistoryPredictor, chosen_size

CUTS = Cuts()
CHAT = LengthQuery(model="m", key="chat", input_tokens=300)
CODE = LengthQuery(model="m", key="code", input_tokens=3000)


def learned(*pairs: tuple[LengthQuery, int], times: int = 30) -> HistoryPredictor:
    predictor = HistoryPredictor(CUTS)
    for _ in range(times):
        for query, tokens in pairs:
            predictor.observe(query, predictor.predict(query), tokens)
    return predictor


def likeliest(prediction: LengthPrediction) -> Size:
    return Size(prediction.classes.index(max(prediction.classes)))


def test_a_fresh_predictor_answers_broadly() -> None:
    prediction = HistoryPredictor(CUTS).predict(CHAT)
    assert 1 <= prediction.q50 < prediction.q90
    assert max(prediction.classes) < 0.6


def test_each_key_gets_its_own_length() -> None:
    predictor = learned((CHAT, 600), (CODE, 12))
    assert likeliest(predictor.predict(CHAT)) is Size.L
    assert likeliest(predictor.predict(CODE)) is Size.S
    assert predictor.predict(CHAT).q50 > 10 * predictor.predict(CODE).q50


def test_a_new_key_starts_from_its_model() -> None:
    predictor = learned((CHAT, 600))
    stranger = LengthQuery(model="m", key="new", input_tokens=40)
    assert likeliest(predictor.predict(stranger)) is Size.L
    assert max(predictor.predict(LengthQuery("other", "new", 40)).classes) < 0.6


def test_the_system_prompt_tells_two_uses_of_one_key_apart() -> None:
    short = LengthQuery("m", "k", 200, system_hash=1)
    long = LengthQuery("m", "k", 200, system_hash=2)
    predictor = learned((short, 20), (long, 900))
    assert likeliest(predictor.predict(short)) is Size.S
    assert likeliest(predictor.predict(long)) is Size.L


def test_a_conversation_that_had_long_answers_is_told_from_one_with_short_ones() -> None:
    rng = random.Random(3)
    predictor = HistoryPredictor(CUTS)
    for turn in range(1, 1600, 2):
        tokens = rng.choice((20, 800))
        predictor.observe(LengthQuery("m", "k", rng.randrange(100, 9000), turn=turn), FLAT, tokens)
        again = LengthQuery("m", "k", rng.randrange(100, 9000), parent=turn, turn=turn + 1)
        predictor.observe(again, FLAT, tokens)
    predictor.observe(LengthQuery("m", "k", 555, turn=10_001), FLAT, 800)
    predictor.observe(LengthQuery("m", "k", 556, turn=10_002), FLAT, 20)
    assert likeliest(predictor.predict(LengthQuery("m", "k", 9500, parent=10_001))) is Size.L
    assert likeliest(predictor.predict(LengthQuery("m", "k", 9500, parent=10_002))) is Size.S


FLAT = LengthPrediction(150.0, 600.0, (1 / 3, 1 / 3, 1 / 3))


def test_a_tenth_of_the_answers_exceeds_q90() -> None:
    rng = random.Random(5)
    predictor = HistoryPredictor(CUTS)
    over = 0
    for place in range(3000):
        query = LengthQuery("m", "", rng.randrange(1, 2000))
        prediction = predictor.predict(query)
        tokens = int(rng.lognormvariate(4.5, 1.0)) + 1
        over += place >= 500 and tokens > prediction.q90
        predictor.observe(query, prediction, tokens)
    assert 0.08 <= over / 2500 <= 0.12


@pytest.mark.parametrize(
    ("cap", "largest"), [(1, Size.S), (99, Size.S), (100, Size.M), (349, Size.M), (350, Size.L)]
)
def test_max_tokens_caps_everything(cap: int, largest: Size) -> None:
    predictor = learned((CHAT, 900))
    prediction = predictor.predict(LengthQuery("m", "chat", 300, max_tokens=cap))
    assert prediction.q50 <= cap
    assert prediction.q90 <= cap
    assert sum(prediction.classes) == pytest.approx(1.0)
    assert not any(prediction.classes[largest + 1 :])


def test_an_answer_cut_off_does_not_teach_that_answers_are_short() -> None:
    predictor = learned((CHAT, 900))
    cut = LengthQuery("m", "chat", 300, max_tokens=16)
    for _ in range(40):
        predictor.observe(cut, predictor.predict(cut), 16)
    assert likeliest(predictor.predict(CHAT)) is Size.L


def test_a_swapped_model_is_noticed_and_followed() -> None:
    predictor = learned((CHAT, 30), times=300)
    before = predictor.models["m"].swaps
    for _ in range(60):
        predictor.observe(CHAT, predictor.predict(CHAT), 900)
    assert (before, predictor.models["m"].swaps) == (0, 1)
    assert likeliest(predictor.predict(CHAT)) is Size.L


def test_a_few_answers_that_do_not_fit_are_doubt_and_not_yet_a_swap() -> None:
    predictor = learned((CHAT, 30), times=300)
    state = predictor.models["m"]
    assert not state.drift.doubtful
    for _ in range(8):
        predictor.observe(CHAT, predictor.predict(CHAT), 900)
    assert (state.drift.doubtful, state.swaps) == (True, 0)
    for _ in range(60):
        predictor.observe(CHAT, predictor.predict(CHAT), 900)
    assert (state.drift.doubtful, state.swaps) == (False, 1)


def test_steady_traffic_is_never_called_a_swap() -> None:
    rng = random.Random(7)
    predictor = HistoryPredictor(CUTS)
    for _ in range(4000):
        query = LengthQuery("m", "", rng.randrange(1, 2000))
        predictor.observe(query, FLAT, int(rng.lognormvariate(5.0, 1.1)) + 1)
    assert predictor.models["m"].swaps == 0


def test_a_swap_is_noticed_although_every_key_comes_rarely_and_answers_scatter() -> None:
    rng = random.Random(3)
    predictor = HistoryPredictor(CUTS)
    for middle, times in ((5.0, 400), (6.0, 100)):
        for _ in range(times):
            query = LengthQuery("m", f"key-{rng.randrange(50)}", rng.randrange(1, 2000))
            tokens = int(rng.lognormvariate(middle, 0.6)) + 1
            predictor.observe(query, predictor.predict(query), tokens)
    assert predictor.models["m"].swaps == 1


def test_what_is_left_grows_for_a_request_that_outlives_its_q90() -> None:
    predictor = learned((CHAT, 100), (CHAT, 300), (CHAT, 40))
    prediction = predictor.predict(CHAT)
    late = predictor.remaining(CHAT, prediction, int(prediction.q90 * 2))
    assert late.q90 > late.q50 >= 1
    assert predictor.remaining(CHAT, prediction, 0) == prediction


@given(
    q50=st.floats(1, 4000),
    spread=st.floats(1, 20),
    weights=st.tuples(*[st.floats(0.001, 1)] * 3),
    generated=st.integers(1, 20_000),
    cap=st.none() | st.integers(1, 30_000),
)
def test_the_rest_is_a_distribution_and_keeps_the_cap(
    q50: float, spread: float, weights: tuple[float, float, float], generated: int, cap: int | None
) -> None:
    total = sum(weights)
    classes = (weights[0] / total, weights[1] / total, weights[2] / total)
    query = LengthQuery("m", "", 10, max_tokens=cap)
    rest = HistoryPredictor(CUTS).remaining(query, LengthPrediction(q50, q50 * spread, classes), generated)
    assert 1 <= rest.q50 <= rest.q90
    assert all(-1e-9 <= p <= 1 + 1e-9 for p in rest.classes)
    assert sum(rest.classes) == pytest.approx(1.0)
    if cap is not None and cap > generated:
        assert rest.q90 <= cap - generated + 1e-6


def test_under_prediction_can_be_made_costlier() -> None:
    prediction = LengthPrediction(90.0, 400.0, (0.5, 0.3, 0.2))
    assert chosen_size(prediction, under_cost=1.0) <= Size.M
    assert chosen_size(prediction, under_cost=5.0) == Size.L


def test_the_table_forgets_the_key_learned_longest_ago() -> None:
    table = KeyTable(capacity=2)
    for key in (1, 2, 1, 3):
        table.learn(LEVELS[:1], [key], [BASE], 0, 4.0)
    assert [table.get(key) is not None for key in (1, 2, 3)] == [True, False, True]


def test_rows_survive_being_saved_and_a_smaller_table_keeps_the_newest() -> None:
    predictor = learned((CHAT, 600), (CODE, 12))
    table = KeyTable(3)
    rows = predictor.table.dump()
    table.load(rows)
    assert table.dump().keys == rows.keys[-3:]


def test_a_full_table_fits_in_64_mb() -> None:
    tracemalloc.start()
    predictor = HistoryPredictor(CUTS)
    for number in range(4_000):
        query = LengthQuery("m", f"key-{number}", 100 + number % 3000)
        predictor.observe(query, FLAT, 1 + number % 900)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used / len(predictor.table) * predictor.table.capacity < 64e6


def test_hundreds_in_flight_do_not_make_the_upper_quantile_swing() -> None:
    predictor = HistoryPredictor(Cuts())
    draw = random.Random(3)
    open_: list[tuple[LengthQuery, LengthPrediction, int]] = []
    highest = 0.0
    for _ in range(6000):
        query = LengthQuery(model="m", key="", input_tokens=draw.randint(20, 3000))
        prediction = predictor.predict(query)
        highest = max(highest, prediction.q90)
        open_.append((query, prediction, round(draw.lognormvariate(5.0, 1.0)) + 1))
        if len(open_) > 400:
            predictor.observe(*open_.pop(draw.randrange(100)))
    assert highest < 5000.0, "a tenth of the answers exceed 535"
