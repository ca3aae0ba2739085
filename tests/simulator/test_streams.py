"""Streams of arrivals: part by part they give what was made of the whole at once, and hold little of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.floor import Demand
from joulegate.units import Seconds
from simulator.recipe import DAY, Daily, Recipe, daily, scale
from simulator.streams import SPREAD, Half, Kept, Merged, Repeated, Turned, constant
from simulator.workload import (
    Floats,
    Foresight,
    Ints,
    Load,
    Rows,
    Stream,
    busiest,
    census,
    held,
    pieces,
)


def load(count: int = 300, rate: float = 6.0, seed: int = 1) -> Load:
    draw = np.random.default_rng(seed)
    at = np.round(np.cumsum(draw.exponential(1.0 / rate, count)), 1)  # some come together
    at = (at - at[0]).astype(np.float64)
    return Load(
        at, draw.integers(20, 3000, count), draw.integers(1, 400, count), Seconds(float(at[-1]) or 1.0)
    )


@dataclass(frozen=True, slots=True)
class InParts:
    """The same in parts of a size."""

    whole: Load
    size: int

    @property
    def span(self) -> Seconds:
        return self.whole.span

    def parts(self) -> Iterator[Rows]:
        return pieces(Rows(self.whole.at, self.whole.input, self.whole.output), self.size)


LOADS = st.builds(load, st.integers(1, 400), st.floats(0.05, 50.0), st.integers(0, 9))
SIZES = st.integers(1, 90)


def same(one: Stream, other: Stream) -> bool:
    a, b = held(one), held(other)
    columns = ((a.at, b.at), (a.input, b.input), (a.output, b.output))
    return a.span == b.span and all(np.array_equal(x, y) for x, y in columns)


# -- the same of the whole at once: what the parts must give


def by_time(at: Floats, rows: Ints, base: Load) -> Load:
    order = np.argsort(at, kind="stable")
    return Load(at[order], base.input[rows[order]], base.output[rows[order]], base.span)


def scaled_at_once(base: Load, factor: float, seed: int) -> Load:
    rng = np.random.default_rng(seed)
    copies = np.floor(factor) + (rng.random(len(base)) < factor % 1.0)
    picked, times = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for copy in range(int(copies.max(initial=0))):
        rows = np.flatnonzero(copies > copy)
        moved = np.abs(base.at[rows] + (rng.uniform(-SPREAD, SPREAD, len(rows)) if copy else 0.0))
        times.append(np.where(moved > base.span, 2.0 * base.span - moved, moved))
        picked.append(rows)
    return by_time(np.concatenate(times), np.concatenate(picked), base)


def day_at_once(base: Load, day: Daily, factor: float, seed: int) -> Load:
    rng = np.random.default_rng(seed)
    copies = []
    for n in range(int(np.ceil(DAY / base.span))):
        at = (base.at - float(rng.uniform(0.0, base.span))) % base.span
        order = np.argsort(at, kind="stable")
        copies.append((at[order] + n * base.span, base.input[order], base.output[order]))
    at, tokens_in, tokens_out = (np.concatenate(column) for column in zip(*copies, strict=True))
    kept = at < DAY
    whole = Load(at[kept], tokens_in[kept], tokens_out[kept], DAY)
    wanted = day.mean * daily(day.low, day.swing, day.peak_hour)(whole.at / 3600.0)
    factors = factor * wanted * whole.span / len(whole)
    rng = np.random.default_rng(seed)
    rows = np.repeat(
        np.arange(len(whole)), (np.floor(factors) + (rng.random(len(whole)) < factors % 1.0)).astype(int)
    )
    first = np.concatenate([[True], rows[1:] != rows[:-1]])
    moved = np.abs(whole.at[rows] + np.where(first, 0.0, rng.uniform(-SPREAD, SPREAD, len(rows))))
    return by_time(np.where(moved > DAY, 2.0 * DAY - moved, moved), rows, whole)


@settings(deadline=None)
@given(LOADS, SIZES, st.floats(0.0, 5.0), st.integers(0, 5))
def test_a_scaled_stream_is_the_trace_scaled_at_once(base: Load, size: int, factor: float, seed: int) -> None:
    assert same(scale(InParts(base, size), factor, seed), scaled_at_once(base, factor, seed))


@settings(deadline=None, max_examples=10)
@given(st.integers(3000, 6000), st.integers(500, 900), st.integers(0, 5))
def test_a_day_in_parts_is_the_day_at_once(count: int, size: int, seed: int) -> None:
    base, day = load(count, rate=0.5), Daily(0.3, 0.5, 1.2, 14.0)
    made = Recipe(InParts(base, size), day=day).load(1.0, seed)
    assert same(made, day_at_once(base, day, 1.0, seed))


@settings(deadline=None)
@given(LOADS, SIZES)
def test_halves_are_the_whole(base: Load, size: int) -> None:
    source = InParts(base, size)
    first, second = held(Half(source, second=False)), held(Half(source, second=True))
    middle = 0.5 * base.span
    assert first.span == second.span == middle
    assert np.array_equal(np.concatenate([first.at, second.at + middle]), base.at) or np.allclose(
        np.concatenate([first.at, second.at + middle]), base.at, rtol=0.0, atol=1e-9
    )
    assert np.array_equal(np.concatenate([first.input, second.input]), base.input)
    assert np.all(first.at < middle)
    assert np.all(second.at >= 0.0)


@settings(deadline=None)
@given(st.lists(LOADS, min_size=1, max_size=4), st.lists(SIZES, min_size=4, max_size=4))
def test_merged_streams_are_sorted_and_of_one_time_the_first_comes_first(
    loads: list[Load], sizes: list[int]
) -> None:
    whole = Merged(tuple(InParts(base, size) for base, size in zip(loads, sizes, strict=False)))
    at = np.concatenate([base.at for base in loads])
    order = np.argsort(at, kind="stable")
    tokens = np.concatenate([base.input for base in loads])
    assert np.array_equal(held(whole).at, at[order])
    assert np.array_equal(held(whole).input, tokens[order])


@settings(deadline=None)
@given(LOADS, SIZES, st.floats(0.001, 1.0))
def test_a_turned_stream_has_the_same_requests_in_the_order_of_their_new_times(
    base: Load, size: int, share: float
) -> None:
    seconds = share * base.span
    at = (base.at - seconds) % base.span
    assert same(Turned(InParts(base, size), seconds), by_time(at, np.arange(len(base)), base))


@settings(deadline=None)
@given(LOADS, SIZES, st.floats(0.5, 100.0))
def test_what_is_said_of_a_stream_is_true_of_the_whole(base: Load, size: int, span: float) -> None:
    source = InParts(base, size)
    minutes = np.bincount((base.at // 60.0).astype(int))
    found = census(source)
    assert (found.count, found.input, found.output) == (len(base), base.input.sum(), base.output.sum())
    assert found.peak == minutes.max() / 60.0
    after = np.searchsorted(base.at, base.at + span, side="left") - np.arange(len(base))
    assert busiest(source, span) == base.at[np.argmax(after)]


def test_nothing_is_left_of_a_stream_of_which_nothing_is_kept() -> None:
    nothing = Kept(load(), lambda rows: rows.at < 0.0)
    assert list(scale(nothing, 2.5, 0).parts()) == []
    assert census(nothing).count == 0
    assert len(held(Merged((nothing, Half(nothing, second=True))))) == 0


def test_a_constant_rate_has_its_rate_and_the_lengths_of_its_trace() -> None:
    base = load()
    made = constant(InParts(base, 7), len(base), 8.0, Seconds(500.0), 3)
    assert len(made) == 4000
    assert census(made).peak == pytest.approx(8.0, rel=0.2)
    assert set(zip(made.input, made.output, strict=True)) <= set(zip(base.input, base.output, strict=True))


def test_a_day_has_its_mean_its_peak_and_its_valley() -> None:
    hours = np.arange(0.0, 24.0, 0.01)
    shape = daily(0.5, 1.2, 14.0)(hours)
    assert shape.mean() == pytest.approx(1.0, abs=1e-3)
    assert (shape.max(), hours[shape.argmax()]) == pytest.approx((1.7, 14.0), abs=1e-2)
    assert shape.min() == pytest.approx(0.5, abs=1e-3)
    made = held(Recipe(load(2000), day=Daily(1.0, 0.5, 1.2, 14.0)).load(1.0, 3))
    assert len(made) == pytest.approx(86_400, rel=0.03)
    assert (np.diff(made.at) >= 0.0).all()
    assert 0.0 <= made.at.min() <= made.at.max() <= 86_400.0
    by_hour = np.bincount((made.at // 3600).astype(int), minlength=24) / 3600.0
    assert by_hour[14] == pytest.approx(1.7, rel=0.15)


def test_two_traces_are_served_together_and_copies_follow_each_other() -> None:
    base = load(500)
    both = Recipe(base, also=((load(300, seed=9), 2.0),)).load(1.0, 0)
    assert census(both).count == 1100
    thrice = held(Repeated(base, Seconds(2.5 * base.span), 0))
    assert len(thrice) == pytest.approx(1250, rel=0.05)
    assert (np.diff(thrice.at) >= 0.0).all()


def test_foresight_sees_the_work_of_the_busiest_ten_seconds_to_come() -> None:
    at = np.concatenate([np.arange(0.0, 60.0, 0.5), np.arange(30.25, 40.0, 0.5)])
    order = np.argsort(at)
    tokens = np.where((at >= 50.0), 300, 100)[order]
    load = Load(at[order], tokens, np.full(len(at), 20), Seconds(60.0))
    like, foresight = Demand(2.0, 100.0, 100.0, 20.0), Foresight(load)
    assert [foresight.most(now, 20.0, like) for now in (0.0, 20.0, 40.0)] == pytest.approx([2.0, 4.0, 6.0])
    assert foresight.mean(0.0, 30.0) == Demand(2.0, 100.0, 100.0, 20.0)
    assert foresight.most(1000.0, 20.0, like) == foresight.most(50.0, 10.0, like), "the end goes on"
