"""Values in buckets: percentiles within 0.05 %, and on the right side of the mark without any error."""

from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.spread import Spread, together

VALUE = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.0, inf, 0.25]))
VALUES = st.lists(VALUE, min_size=1, max_size=200)


def spread_of(values: list[float], mark: float = inf) -> Spread:
    made = Spread(mark)
    made.add(np.array(values))
    return made


@given(VALUES, st.floats(0.0, 1.0))
def test_a_percentile_is_that_of_all_values_within_half_a_thousandth(
    values: list[float], share: float
) -> None:
    found = spread_of(values)
    true = sorted(values)[ceil((len(values) - 1) * share)]
    assert found.quantile(share) == pytest.approx(true, rel=2**-11)
    finite = [value for value in values if value < inf]
    assert (found.count, found.finite) == (len(values), len(finite))
    if len(finite) == len(values):
        assert found.median() == pytest.approx(float(np.median(values)), rel=2**-11)


@given(VALUES, st.floats(0.0, 1.0), st.floats(1e-3, 10.0), st.lists(st.floats(-1e-4, 1e-4), max_size=50))
def test_whether_a_percentile_is_over_the_mark_is_exact(
    values: list[float], share: float, mark: float, near: list[float]
) -> None:
    values = [*values, mark, *(mark * (1.0 + each) for each in near)]
    found = spread_of(values, mark)
    true = sorted(values)[ceil((len(values) - 1) * share)]
    assert (found.quantile(share) > mark) == (true > mark)
    assert found.quantile(share) == pytest.approx(true, rel=2**-10)
    assert found.within == sum(value <= mark for value in values)


@given(st.lists(VALUES, min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_spreads_together_are_the_spread_of_all(lists: list[list[float]], share: float) -> None:
    everything = spread_of([value for values in lists for value in values], 0.25)
    found = together([spread_of(values, 0.25) for values in lists])
    assert (found.quantile(share), found.within, found.mark) == (
        everything.quantile(share),
        everything.within,
        0.25,
    )
    other = together([spread_of(lists[0], 0.25), spread_of(lists[0], 0.5)])
    assert (other.mark, other.within) == (inf, 2 * len(lists[0]))


def test_it_does_not_grow_with_the_number_of_values() -> None:
    draw, found = np.random.default_rng(0), Spread()
    for _ in range(50):
        found.add(np.exp(draw.uniform(np.log(0.01), np.log(100.0), 20_000)))
    assert found.count == 1_000_000
    assert len(found._buckets) < 15_000


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(IndexError):
        Spread().quantile(0.5)
