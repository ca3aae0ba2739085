"""What a sweep measures, in which order, for how long, and what it says of clocks."""

from itertools import product
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import Batch
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.latency_data import Row
from predictor.sweep import (
    LEAST_TOKENS,
    MOST_TOKENS,
    Grid,
    Point,
    Probe,
    duration,
    energy_curves,
    median_error,
    output_tokens,
    plan,
    spread,
)

GRID = Grid((1, 8), (256, 1024), (128,), Seconds(1.0))
CLOCKS = tuple(MegaHertz(f) for f in (705, 1050, 1410))
PROBE = Probe(Seconds(0.012), Seconds(1e-4))


def row(clock: int, seconds: float, watts: float | None, batch: int = 8) -> Row:
    power = None if watts is None else Watts(watts)
    return Row("decode", Batch(batch, 256.0 * batch), float(clock), Seconds(seconds), power, capped=False)


def test_the_highest_clock_comes_first_and_no_clock_comes_twice() -> None:
    points = plan(GRID, CLOCKS, done=())
    clocks = [point.clock for point in points]
    assert clocks == sorted(clocks, reverse=True)
    assert len(points) == 3 * (1 + 2 * 2)
    assert len({point.key for point in points}) == len(points)


def test_an_interrupted_sweep_goes_on_with_what_is_left() -> None:
    whole = plan(GRID, CLOCKS, done=())
    rest = plan(GRID, CLOCKS, done={point.key for point in whole[:6]})
    assert rest == whole[6:]


def test_loads_that_do_not_fit_the_kv_cache_are_left_out() -> None:
    small = Grid((1, 64), (1024,), (), Seconds(1.0), capacity=20_000)
    assert {point.batch for point in plan(small, CLOCKS, done=())} == {1}


@given(st.integers(1, 20), st.lists(st.integers(200, 2000), min_size=1, max_size=120, unique=True))
def test_spread_keeps_both_ends_and_stays_within_its_count(count: int, ladder: list[int]) -> None:
    clocks = [MegaHertz(clock) for clock in ladder]
    chosen = spread(clocks, count)
    assert len(chosen) <= max(count, 1)
    assert set(chosen) <= set(clocks)
    assert chosen[-1] == max(clocks)
    if count > 1:
        assert chosen[0] == min(clocks)


@given(st.integers(1, 9000), st.floats(0.001, 1.0))
def test_the_output_never_outgrows_the_context_it_is_centred_on(context: int, iteration: float) -> None:
    point = Point("decode", 4, context, 0, CLOCKS[0])
    output = output_tokens(point, Seconds(iteration), Seconds(1.5))
    assert 1 <= output <= MOST_TOKENS
    assert context == 1 or point.context - output // 2 >= 1
    assert output >= LEAST_TOKENS or output == 2 * (context - 1) or context == 1


def test_the_estimate_grows_with_what_is_left() -> None:
    points = plan(GRID, CLOCKS, done=())
    left = [duration(points[i:], PROBE, CLOCKS[-1], GRID.window) for i in range(len(points) + 1)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0
    assert left[0] > len(points) * GRID.window * 0.9


def test_the_best_clock_needs_the_least_energy_per_token_not_the_least_power() -> None:
    rows = [row(705, 0.030, 100.0), row(1050, 0.016, 120.0), row(1410, 0.015, 200.0)]
    (curve,) = energy_curves(rows, gpus=2)
    assert curve.best.clock == 1050
    assert curve.best.joules_per_token == pytest.approx(120.0 * 2 * 0.016 / 8)
    assert curve.best.slowdown == pytest.approx(16 / 15)
    assert curve.saving_ratio == pytest.approx(1.0 - 120 * 16 / (200 * 15))


def test_without_power_or_with_one_clock_there_is_no_curve() -> None:
    assert energy_curves([row(705, 0.03, None), row(1410, 0.02, None)], gpus=1) == []
    assert energy_curves([row(1410, 0.02, 200.0)], gpus=1) == []


@given(st.lists(st.floats(0.001, 10.0), min_size=3, max_size=5))
def test_the_error_of_a_median_is_how_far_medians_of_such_values_scatter(values: list[float]) -> None:
    number = len(values)
    medians = [sorted(drawn)[number // 2] for drawn in product(values, repeat=number)]
    assert median_error(values) == pytest.approx(pstdev(medians), rel=1e-6, abs=1e-6)


def test_one_or_two_values_do_not_tell_how_far_their_median_is_off() -> None:
    assert median_error([0.01]) is None
    assert median_error([0.01, 0.02]) is None
