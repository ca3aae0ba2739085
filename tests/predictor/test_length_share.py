"""What replicas tell each other of output lengths: as good as seen, harmless however often it comes."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import Cuts, LengthQuery
from predictor.length import HistoryPredictor
from predictor.length_share import MOST_BYTES, MOST_ROWS, read, take, tell
from predictor.length_store import factory
from predictor.length_text import TextPredictor

CUTS = Cuts()
QUERY = LengthQuery("m", "team", 100, text_head="list ten rivers")


def fresh() -> TextPredictor:
    predictor = factory(CUTS, None, use_prior=True)()
    assert isinstance(predictor, TextPredictor)
    return predictor


def taught(tokens: int, times: int) -> TextPredictor:
    predictor = fresh()
    for _ in range(times):
        predictor.observe(QUERY, predictor.predict(QUERY), tokens)
    return predictor


def told(to: HistoryPredictor, by: HistoryPredictor) -> int:
    return list(take(to, read(tell(by))))[-1]


def test_a_replica_that_starts_knows_what_the_others_have_seen() -> None:
    one, other = taught(700, 200), fresh()
    assert other.predict(QUERY).q50 < 400
    told(other, one)
    assert other.predict(QUERY).q50 == pytest.approx(one.predict(QUERY).q50, rel=0.02)
    assert other.predict(QUERY).classes == pytest.approx(one.predict(QUERY).classes, abs=0.02)


def test_telling_each_other_again_and_again_changes_nothing() -> None:
    one, other = taught(700, 200), fresh()
    told(other, one)
    before = other.table.dump()
    assert told(other, one) == 0
    assert told(one, other) == 0
    assert other.table.dump() == before


def test_what_a_replica_has_seen_more_of_itself_stays_its_own() -> None:
    one, other = taught(20, 10), taught(700, 200)
    before = other.predict(QUERY)
    told(other, one)
    assert other.predict(QUERY) == before


def test_a_swap_one_replica_noticed_is_known_to_the_other() -> None:
    one, other = taught(700, 200), taught(700, 200)
    one.forget(one.models["m"])
    for _ in range(30):
        one.observe(QUERY, one.predict(QUERY), 10)
    told(other, one)
    assert other.models["m"].root == one.models["m"].root
    assert other.predict(QUERY).q50 < 60


def test_replicas_without_text_understand_each_other_and_not_the_others() -> None:
    one, other = HistoryPredictor(CUTS), HistoryPredictor(CUTS)
    for _ in range(50):
        one.observe(QUERY, one.predict(QUERY), 700)
    told(other, one)
    assert other.predict(QUERY).q50 == pytest.approx(one.predict(QUERY).q50, rel=0.02)
    with pytest.raises(ValueError, match="another version"):
        told(fresh(), one)


def test_a_message_is_bounded_however_much_was_seen() -> None:
    predictor = HistoryPredictor(CUTS)
    for number in range(6000):
        query = LengthQuery(f"m{number % 300}", f"k{number}", number)
        predictor.observe(query, predictor.predict(query), 100)
    message = tell(predictor)
    assert len(message) < MOST_BYTES
    assert len(read(message).keys) == MOST_ROWS
    newest = predictor.table.dump().keys[-MOST_ROWS:]
    assert read(message).keys == newest


@given(st.binary(max_size=300))
def test_garbage_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(message)


@pytest.mark.parametrize(
    ("field", "value"), [("swaps", 10**12), ("bias", [1e999]), ("losses", 3), ("more", 1), ("spread", -1)]
)
def test_a_model_that_is_none_is_refused(field: str, value: object) -> None:
    head, _, body = tell(taught(700, 5)).partition(b"\n")
    found = orjson.loads(head)
    found["models"]["m"][field] = value
    with pytest.raises(ValueError, match="validation error"):
        read(orjson.dumps(found) + b"\n" + body)


def test_a_message_cut_short_is_refused() -> None:
    message = tell(taught(700, 5))
    with pytest.raises(ValueError, match="rows are missing"):
        read(message[:-1])
