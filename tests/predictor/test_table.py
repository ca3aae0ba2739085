"""The tables that are served: monotone whatever they were made from, exact where they should be."""

from array import array
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.domain import Batch
from joulegate.units import MegaHertz, Seconds
from predictor.table import TableModel, Tables, Trained, search
from predictor.table_build import CLOCK_BEND, COLUMNS, columns_of, monotone

TRAINED = Trained(
    engine="test",
    rows=8,
    ranges={
        "batch": (1, 8),
        "context_tokens": (0, 8000),
        "prefill_tokens": (0, 2000),
        "clock_mhz": (500, 1500),
    },
    time_error_p90=0.02,
    time_error_p95=0.03,
    power_error_p90=0.02,
    power_error_p95=0.03,
    residual_share=0.0,
)
CLOCKS = (500, 800, 1100, 1500)
BATCH, CONTEXT, TOKENS = (0.0, 1.0, 4.0, 8.0), (0.0, 1000.0, 8000.0), (0.0, 256.0, 2000.0)
SHAPE = (len(BATCH), len(CONTEXT), len(TOKENS), len(CLOCKS))


def model_of(times: np.ndarray, watts: np.ndarray | None = None, graphs: tuple[int, ...] = ()) -> TableModel:
    def single(table: np.ndarray) -> "array[float]":
        return array("f", table.ravel().tolist())

    power = np.tile(np.array(CLOCKS, dtype=float) / 10.0, (times.size // len(CLOCKS), 1))
    return TableModel(
        Tables(
            clocks=CLOCKS,
            columns=CLOCKS,
            batch=BATCH,
            context=CONTEXT,
            tokens=TOKENS,
            times=single(times),
            watts=single(power if watts is None else watts),
            per_sequence=1e-4,
            attention=1e-9,
            graphs=graphs,
            idle_watts=50.0,
        ),
        TRAINED,
    )


def random_table(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return monotone(rng.lognormal(-4.0, 1.0, SHAPE), rng.random(SHAPE[:3]) < 0.3)


works = st.builds(
    Batch,
    decoding=st.integers(0, 40),
    context_tokens=st.floats(0.0, 50_000.0),
    prefill_tokens=st.integers(0, 9000),
    prefill_attention=st.floats(0.0, 1e8),
)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_projection_makes_any_table_monotone_and_keeps_one_that_is(seed: int) -> None:
    table = random_table(seed)
    for axis in range(3):
        assert (np.diff(table, axis=axis) >= 0.0).all()
    assert (np.diff(table, axis=3) <= 0.0).all()
    everywhere = np.ones(SHAPE[:3], np.bool_)
    assert monotone(table, everywhere) == pytest.approx(table, rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_what_was_measured_is_not_moved_for_what_is_made_up_beside_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured, touched = random_table(seed), rng.random(SHAPE[:3]) < 0.3
    made_up = np.where(touched[..., None], measured, rng.lognormal(-4.0, 1.0, SHAPE))
    assert monotone(made_up, touched)[touched] == pytest.approx(measured[touched], rel=1e-5)


@settings(deadline=None)
@given(st.integers(0, 50), works, st.floats(300.0, 1700.0), st.floats(300.0, 1700.0), st.booleans())
def test_no_lower_clock_is_ever_faster(seed: int, work: Batch, one: float, other: float, pads: bool) -> None:
    model = model_of(random_table(seed), graphs=(1, 2, 4, 8) if pads else ())
    low, high = sorted((one, other))
    # between two supported clocks rounding may move the last digit
    assert model.iteration_time(work, low) >= model.iteration_time(work, high) * (1.0 - 1e-12)
    assert model.watts(work, low) <= model.watts(work, high) * (1.0 + 1e-12)
    seconds, _ = model.curve(work)
    assert all(slow >= fast for slow, fast in pairwise(seconds))


@settings(deadline=None)
@given(st.integers(0, 50), works, works, st.sampled_from(CLOCKS), st.booleans())
def test_more_work_is_never_faster(seed: int, one: Batch, other: Batch, clock: int, pads: bool) -> None:
    model = model_of(random_table(seed), graphs=(1, 2, 4, 8) if pads else ())
    more = Batch(
        max(one.decoding, other.decoding),
        max(one.context_tokens, other.context_tokens),
        max(one.prefill_tokens, other.prefill_tokens),
        max(one.prefill_attention, other.prefill_attention),
    )
    # a point on the edge of a cell is read from either side of it: the last digit may differ
    assert model.iteration_time(more, clock) >= model.iteration_time(one, clock) * (1.0 - 1e-12)


def test_at_a_knot_the_table_itself_is_read() -> None:
    table = random_table(7)
    model = model_of(table)
    for i, j, k, c in product(range(4), range(3), range(3), range(4)):
        work = Batch(int(BATCH[i]), CONTEXT[j], int(TOKENS[k]))
        expected = table[i, j, k, c] + 1e-4 * BATCH[i]
        assert model.iteration_time(work, CLOCKS[c]) == pytest.approx(expected, rel=1e-6)


def test_a_curve_says_what_single_calls_say() -> None:
    model = model_of(random_table(8), graphs=(1, 2, 4, 8))
    work = Batch(3, 2500.0, 100, 7000.0)
    seconds, watts = model.curve(work)
    assert seconds == pytest.approx([model.iteration_time(work, clock) for clock in CLOCKS], rel=1e-12)
    assert watts == pytest.approx([model.watts(work, clock) for clock in CLOCKS], rel=1e-12)


def test_a_batch_between_graph_sizes_costs_the_larger_one_but_for_its_own_host_work() -> None:
    model = model_of(random_table(9), graphs=(1, 2, 4, 8))
    five, eight = (model.iteration_time(Batch(n, 4000.0), 1100) for n in (5, 8))
    assert eight - five == pytest.approx(3 * 1e-4)


def test_another_batch_at_the_same_clock_is_not_mistaken_for_the_last_one() -> None:
    model = model_of(random_table(10))
    first = model.iteration_time(Batch(1, 100.0), 800)
    second = model.iteration_time(Batch(8, 8000.0), 800)
    assert second > first
    assert model.iteration_time(Batch(1, 100.0), 800) == first
    assert model.watts(Batch(1, 100.0), 800) == 80.0


def test_a_batch_that_was_changed_since_the_last_question_is_looked_up_anew() -> None:
    times, watts, batch = random_table(11), random_table(12), Batch(2, 3000.0)
    model, fresh = model_of(times, watts), model_of(times, watts)
    model.iteration_time(batch, 800)
    model.watts(batch, 800)
    batch.decoding, batch.context_tokens, batch.prefill_tokens = 7, 6000.0, 1500
    assert model.iteration_time(batch, 800) == fresh.iteration_time(replace(batch), 800)
    assert model.watts(batch, 800) == fresh.watts(replace(batch), 800)


def test_a_model_of_one_clock_says_the_same_at_every_clock() -> None:
    tables = Tables((1,), (1,), (0.0, 4.0), (0.0,), (0.0,), array("f", [0.1, 0.2]), array("f", [0.0, 0.0]),
                    0.0, 0.0, (), 0.0)  # fmt: skip
    model = TableModel(tables, TRAINED)
    assert model.iteration_time(Batch(2), 1) == model.iteration_time(Batch(2), 900) == pytest.approx(0.15)


def test_between_two_columns_a_clock_lies_on_the_chord() -> None:
    model = model_of(random_table(12))
    whole, table = model.tables, np.array(model.tables.times).reshape(-1, len(CLOCKS))
    ends = array("f", table[:, [0, -1]].ravel().tolist())
    thin = TableModel(replace(whole, columns=(CLOCKS[0], CLOCKS[-1]), times=ends, watts=ends), TRAINED)
    work = Batch(3, 2500.0, 100, 7000.0)
    seconds, _ = thin.curve(work)
    assert seconds == pytest.approx([thin.iteration_time(work, clock) for clock in CLOCKS], rel=1e-12)
    plain = [thin.iteration_time(replace(work, prefill_attention=0.0), clock) for clock in CLOCKS]
    assert plain == pytest.approx(np.interp(CLOCKS, CLOCKS[::3], [plain[0], plain[-1]]).tolist())
    assert [seconds[0], seconds[-1]] == pytest.approx(
        [model.iteration_time(work, clock) for clock in (CLOCKS[0], CLOCKS[-1])], rel=1e-6
    )


def test_columns_are_kept_where_a_table_bends() -> None:
    clocks = np.linspace(210.0, 1980.0, 60)
    capped = np.minimum(clocks, clocks[41])  # straight up to the board's limit, then flat
    columns = columns_of(clocks, (capped[None],))
    assert 41 in columns
    assert len(columns) <= 4
    slow = 1.0 / clocks
    columns = columns_of(clocks, (slow[None], capped[None]))
    chords = np.interp(clocks, clocks[columns], slow[columns])
    assert len(columns) == COLUMNS  # clocks are nearly ten times apart: as many as there may be
    assert np.abs(chords / slow - 1.0).max() < 2.0 * CLOCK_BEND
    assert columns_of(clocks[:1], (slow[None, :1],)) == [0]


def test_covers_is_the_range_that_was_swept() -> None:
    model = model_of(random_table(11))
    assert model.covers(Batch(8, 8000.0, 2000))
    assert not model.covers(Batch(9, 100.0))
    assert not model.covers(Batch(1, 8001.0))
    assert not model.covers(Batch(1, 100.0, 2001))


def test_search_takes_the_least_energy_within_the_limit_and_else_the_highest_clock() -> None:
    times = np.broadcast_to(np.array([0.04, 0.024, 0.02, 0.018]), SHAPE).copy()
    watts = np.broadcast_to(np.array([100.0, 110.0, 160.0, 250.0]), SHAPE).copy()
    model = model_of(times, watts)
    assert search(model, Batch(1), Seconds(1.0)) == MegaHertz(800)
    assert search(model, Batch(1), Seconds(0.021)) == MegaHertz(1100)
    assert search(model, Batch(1), Seconds(0.001)) == MegaHertz(1500)
