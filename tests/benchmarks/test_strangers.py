"""Engines and traces that the laws were not made for: each can be simulated, and none is one they know."""

import numpy as np
import pytest

from benchmarks.strangers import STRANGERS, Stranger, arrivals, engine
from joulegate.domain import Batch
from predictor.physics import PhysicsModel


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: one.name)
def test_a_stranger_is_an_engine_that_slows_down_with_its_clock_and_a_trace_in_order(
    stranger: Stranger,
) -> None:
    model, load = PhysicsModel(engine(stranger)), arrivals(stranger)
    batch = Batch(20, 20_000.0, 500, 125_000.0)
    times = [model.iteration_time(batch, clock) for clock in model.clocks]
    assert times == sorted(times, reverse=True)
    assert np.all(np.diff(load.at) >= 0.0)
    assert load.input.min() >= 1
    assert load.output.min() >= 1


def test_no_two_strangers_have_a_name_in_common() -> None:
    assert len({stranger.name for stranger in STRANGERS}) == len(STRANGERS)
