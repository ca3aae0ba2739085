"""Loads that were measured at a few clocks lean on each other."""

import numpy as np

from predictor.latency_fit import Array, Work
from predictor.latency_pooling import LEAST_ROWS, MOST_ROWS, fit_pooling

CLOCKS = np.array([0.4, 0.6, 0.8, 1.0])
BATCHES = np.array([1.0, 4.0, 16.0, 64.0])


def work(batches: Array, x: Array) -> Work:
    none = np.zeros_like(batches)
    return Work(batches, batches, 512.0 * batches, none, none, x)


def sweep(clocks: Array) -> Work:
    return work(np.repeat(BATCHES, len(clocks)), np.tile(clocks, len(BATCHES)))


def left_over(at: Work) -> Array:
    """Each load has an offset and a slope of its own, which change slowly with the load."""
    doublings = np.log2(at.batch)
    return np.asarray(0.03 * (doublings - 3.0) + 0.02 * (3.0 - doublings) * np.log(at.x))


def test_what_a_load_showed_at_some_clocks_is_expected_at_the_others() -> None:
    rng = np.random.default_rng(1)
    learned, between = sweep(CLOCKS), sweep(np.array([0.5, 0.7, 0.9]))
    found = fit_pooling(learned, left_over(learned) + rng.normal(0.0, 0.01, 16))
    assert found is not None
    pooling, unseen = found
    missed = np.abs(pooling.advice(between) - left_over(between)).mean()
    assert missed < 0.01
    assert np.abs(unseen - left_over(learned)).mean() < 0.02


def test_a_load_never_measured_is_expected_to_lie_between_its_neighbours() -> None:
    learned, other = sweep(CLOCKS), work(np.array([8.0]), np.array([1.0]))
    found = fit_pooling(learned, left_over(learned))
    assert found is not None
    low, high = left_over(work(np.array([4.0, 16.0]), np.ones(2)))
    assert low < found[0].advice(other)[0] < high


def test_a_bend_over_the_clock_that_all_loads_show_is_believed() -> None:
    def bend(at: Work) -> Array:
        return np.asarray(0.1 * np.exp(-((np.log(at.x / 0.6) / 0.2) ** 2)))

    learned, between = sweep(CLOCKS), sweep(np.array([0.55, 0.9]))
    found = fit_pooling(learned, bend(learned))
    assert found is not None
    assert np.abs(found[0].advice(between) - bend(between)).max() < 0.03


def test_noise_alone_is_not_believed() -> None:
    rng = np.random.default_rng(2)
    learned = sweep(CLOCKS)
    noise = rng.normal(0.0, 0.03, 16)
    found = fit_pooling(learned, noise)
    assert found is not None
    assert np.abs(found[0].advice(learned)).mean() < 0.4 * np.abs(noise).mean()


def test_too_few_rows_are_not_pooled_and_too_many_need_it_not() -> None:
    for rows in (LEAST_ROWS - 1, MOST_ROWS + 1):
        assert fit_pooling(work(np.ones(rows), np.ones(rows)), np.zeros(rows)) is None
