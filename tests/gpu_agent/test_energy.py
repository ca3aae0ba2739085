"""Joules that never run backwards, from a counter or from power."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.device import Reading
from gpu_agent.energy import Meter, read
from joulegate.units import Joules, MegaHertz, Seconds, Watts


def reading(watts: float, counter: float | None) -> Reading:
    return Reading(MegaHertz(1980), Watts(watts), None if counter is None else Joules(counter), 50.0, (), ())


def total(readings: list[tuple[float, float, float | None]]) -> Meter:
    meter = Meter()
    for at, watts, counter in readings:
        meter = read(meter, reading(watts, counter), Seconds(at))
    return meter


def test_the_counter_is_taken_as_it_is() -> None:
    meter = total([(0.0, 100.0, 5000.0), (10.0, 100.0, 6200.0)])
    assert (meter.total, meter.source) == (6200.0, "counter")


def test_a_counter_that_starts_again_loses_nothing() -> None:
    meter = total([(0.0, 100.0, 5000.0), (10.0, 100.0, 300.0), (20.0, 100.0, 1300.0)])
    # 10 s at 100 W: 1000 J, of which the new counter shows only the last 300.
    assert meter.total == pytest.approx(5000.0 + 1000.0 + 1000.0)


def test_without_a_counter_power_is_integrated_and_said_so() -> None:
    meter = total([(0.0, 100.0, None), (10.0, 300.0, None), (20.0, 300.0, None)])
    assert (meter.total, meter.source) == (2000.0 + 3000.0, "integrated")


def test_a_counter_that_comes_and_goes_is_bridged_by_power() -> None:
    meter = total([(0.0, 100.0, 1000.0), (10.0, 100.0, None), (20.0, 100.0, 3000.0)])
    assert meter.total == pytest.approx(1000.0 + 1000.0 + 1000.0)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 1000.0), st.none() | st.floats(0.0, 1e9)), min_size=2
    )
)
def test_energy_never_runs_backwards(steps: list[tuple[float, float, float | None]]) -> None:
    meter, now = Meter(), 0.0
    for wait, watts, counter in steps:
        now += wait
        before, meter = meter, read(meter, reading(watts, counter), Seconds(now))
        assert before.at is None or meter.total >= before.total
