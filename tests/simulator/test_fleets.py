"""How many instances are the fewest: what is seen early is what the whole hour would have shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from joulegate.domain import Objectives, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds
from simulator.cluster import Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.fleets import fewest, promises
from simulator.results import Pooled
from simulator.workload import Load

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"
COSTS = EngineCosts(parse_profile(json.loads(PROFILE.read_text())))
TOP = COSTS.profile.max_clock
D = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
T = Objectives((Seconds(1e6),) * 3, Seconds(0.2), Seconds(6.0), None)


def burst(rate: float, seed: int = 3) -> Load:
    """Ten minutes, of which one brings three times as much as the others."""
    draw = np.random.default_rng(seed)
    quiet, busy = draw.uniform(0.0, 600.0, round(600 * rate)), draw.uniform(300.0, 360.0, round(120 * rate))
    at = np.sort(np.concatenate([quiet, busy]))
    return Load(at, draw.integers(20, 2000, len(at)), draw.integers(1, 300, len(at)), Seconds(600.0))


def setup(count: int, aims: Objectives = D) -> Setup:
    return Setup((COSTS,) * count, aims)


def test_a_promise_is_broken_where_the_p99_of_all_is_over_its_limit() -> None:
    load = burst(6.0)
    for count in (1, 2):
        scorer, made = promises(load, setup(count))
        pooled = Pooled((run_fixed(load, setup(count), TOP, scorer),))
        broken = {str(promise) for promise in made if promise.is_broken}
        for size in Size:
            p99 = pooled.ttft_p99(size)
            assert p99 is not None
            assert (f"TTFT of {size.name} over {D.ttft[size] * 1e3:.0f} ms" in broken) == (p99 > D.ttft[size])
        assert ("TPOT over 100 ms" in broken) == (pooled.p99("tpot") > D.tpot)


@pytest.mark.parametrize(("rate", "aims"), [(2.0, D), (10.0, D), (25.0, D), (20.0, T)])
def test_the_fewest_keep_every_promise_and_one_less_does_not(rate: float, aims: Objectives) -> None:
    load = burst(rate)

    def keeps(count: int) -> bool:
        scorer, made = promises(load, setup(count, aims))
        run_fixed(load, setup(count, aims), TOP, scorer)
        return not any(promise.is_broken for promise in made)

    count, less = fewest(load, setup(1, aims), 32)
    assert count == next(n for n in range(1, 33) if keeps(n))
    assert bool(less) == (count > 1)


def test_where_not_even_the_most_keep_them_it_is_said_what_they_miss() -> None:
    count, missed = fewest(burst(25.0), setup(1), 1)
    assert count is None
    assert any("TTFT" in what for what in missed)
