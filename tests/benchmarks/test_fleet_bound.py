"""What fleets could save at most: no plan beats fractions of instances, and epochs lose nothing."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fleet_bound import EPOCH, epochs, fluid, program, types_of
from control.planner import grouped
from joulegate.units import Seconds
from simulator.costs import EngineCosts
from simulator.policies import kind_of
from simulator.simulate import read_profile
from simulator.workload import Load

PROFILES = Path(__file__).parents[2] / "configs/profiles"
TPOT = Seconds(0.1)


def load(rate: float, span: float) -> Load:
    rng = np.random.default_rng(1)
    count = int(rate * span)
    at = np.sort(rng.uniform(0.0, span, count))
    return Load(at, rng.integers(20, 3000, count), rng.integers(5, 600, count), Seconds(span))


def test_epochs_hold_what_came_in_them_from_their_own_zero() -> None:
    whole = load(3.0, 750.0)
    parts = epochs(whole)
    assert len(parts) == 2
    assert sum(len(part) for part in parts) == np.count_nonzero(whole.at < 2 * EPOCH)
    assert all(part.at.min() >= 0.0 and part.at.max() < EPOCH for part in parts)


@pytest.mark.parametrize("border", ["one", "by input", "nine"])
def test_fractions_of_instances_draw_least_and_too_few_gpus_are_said(border: str) -> None:
    kinds = [
        kind_of(EngineCosts(read_profile(PROFILES / f"h100_llama-3.1-70b_tp{tp}.json"))) for tp in (4, 8)
    ]
    types = types_of(load(20.0, 300.0))
    assert sum(each.rate for each in types.values()) == pytest.approx(20.0)
    pools = grouped(types, border)
    planned = program(kinds, pools, 1.2, 400, TPOT)
    assert planned is not None
    assert fluid(kinds, types, TPOT) <= planned
    assert program(kinds, pools, 1.2, 8, TPOT) is None
