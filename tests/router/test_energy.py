import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Joules, MegaHertz, Seconds
from predictor.physics import PhysicsModel
from router.energy import EnergyBook

CLOCK = MegaHertz(1410)


@pytest.fixture(scope="module")
def model() -> PhysicsModel:
    path: Path = shipped("profiles/h100_llama-3.1-8b_tp1.json")
    return PhysicsModel(parse_profile(json.loads(path.read_text())))


WORK = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4000), st.integers(0, 50)), max_size=6), max_size=20
)


@given(WORK, st.floats(0.1, 1e4))
def test_nothing_of_what_the_counter_gave_is_lost(
    intervals: list[list[tuple[int, int, int]]], joules: float
) -> None:
    book = EnergyBook()
    given_out = 0.0
    for work in intervals:
        for flight, prompt, output in work:
            book.worked(str(flight), prompt, output)
        given_out += sum(part for _, _, part in book.settle(Joules(joules), None, Batch(), None))
    assert given_out == pytest.approx(book.attributed_joules)
    assert book.attributed_joules + book.idle_joules == pytest.approx(joules * len(intervals))


def test_an_interval_without_work_is_idle_and_belongs_to_no_request() -> None:
    book = EnergyBook()
    book.worked("a", 0, 3)
    book.settle(Joules(10.0), None, Batch(1), None)
    assert book.settle(Joules(70.0), None, Batch(1), None) == []
    assert book.idle_joules == 70.0
    assert book.share("a").joules == 10.0


def test_while_a_long_prompt_is_read_the_joules_are_its_own() -> None:
    book = EnergyBook()
    book.sent("a", 6000)
    [(name, _, part)] = book.settle(Joules(50.0), None, Batch(), None)
    assert (name, part, book.idle_joules) == ("a", 50.0, 0.0)


def test_a_request_that_ended_gets_its_last_joules_with_the_next_reading_and_then_none() -> None:
    book = EnergyBook()
    book.worked("a", 0, 5)
    book.close("a")
    [(name, share, part)] = book.settle(Joules(8.0), None, Batch(1), None)
    assert (name, part, share.joules) == ("a", 8.0, 8.0)
    assert book.open == {}


def test_what_a_request_took_so_far_counts_what_was_drawn_since_the_last_reading() -> None:
    book = EnergyBook()
    assert book.so_far("a", None, Batch(), None, Seconds(1.0)) is None
    book.worked("a", 0, 5)
    book.settle(Joules(8.0), None, Batch(2), None)
    book.watts, book.read_at = 100.0, Seconds(1.0)
    book.worked("a", 0, 1)
    book.worked("b", 0, 3)
    assert book.so_far("a", None, Batch(2), None, Seconds(1.5)) == pytest.approx(8.0 + 100.0 * 0.5 / 4)
    assert book.so_far("b", None, Batch(2), None, Seconds(1.5)) == pytest.approx(100.0 * 0.5 * 3 / 4)
    assert book.so_far("nobody", None, Batch(2), None, Seconds(1.5)) is None


def test_a_long_prompt_costs_more_than_a_few_output_tokens(model: PhysicsModel) -> None:
    book = EnergyBook()
    book.worked("reader", 2000, 0)
    book.worked("writer", 0, 4)
    shares = {n: part for n, _, part in book.settle(Joules(100.0), model, Batch(8, 4000.0), CLOCK)}
    assert shares["reader"] > 3 * shares["writer"]


def test_weights_follow_the_power_model(model: PhysicsModel) -> None:
    """Of two readings' true joules, each request is given what its own tokens took, within 1 %."""
    batch, n = Batch(16, 8000.0), 1000
    step = model.watts(batch, CLOCK) * model.iteration_time(batch, CLOCK)
    mixed = Batch(16, 8000.0, n, 0.5 * n * n)
    prompt = model.watts(mixed, CLOCK) * model.iteration_time(mixed, CLOCK) - step
    book = EnergyBook()
    book.worked("new", n, 0)
    for flight in range(16):
        book.worked(f"old {flight}", 0, 10)
    total = 10 * step + prompt
    shares = {name: part for name, _, part in book.settle(Joules(total), model, batch, CLOCK)}
    assert shares["new"] == pytest.approx(prompt, rel=0.01)
    assert shares["old 3"] == pytest.approx(10 * step / 16, rel=0.01)


def test_without_readings_ended_requests_are_not_kept() -> None:
    book = EnergyBook()
    for flight in ("a", "b"):
        book.worked(flight, 0, 5)
    book.close("a")
    assert book.forget_closed() == ["a"]
    assert list(book.open) == ["b"]
