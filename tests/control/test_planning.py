"""What a kind of instance carries: enough is enough."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.floor import Demand
from control.planner import (
    Kind,
    PlanRules,
    configurations,
    enough,
    fewest,
    grouped,
)
from control.state import Limits
from joulegate.domain import RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds, Watts
from predictor.physics import PhysicsModel

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
TPOT = Seconds(0.1)
RULES = PlanRules()


def kind(tp: int) -> Kind:
    profile = parse_profile(json.loads((PROFILES / f"h100_llama-3.1-70b_tp{tp}.json").read_text()))
    engine = profile.engine
    limits = Limits(engine.max_num_seqs, engine.max_num_batched_tokens, engine.kv_capacity_tokens)
    return Kind(profile.name, PhysicsModel(profile), limits, tp, Seconds(90.0), Watts(98.0))


KINDS = {tp: kind(tp) for tp in (2, 4, 8)}


def demand(rate: float) -> Demand:
    return Demand(rate, 1100.0, 1100.0, 210.0)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 60.0), st.floats(1.0, 2.0), st.sampled_from([4, 8]))
def test_more_load_never_needs_fewer_instances(rate: float, more: float, tp: int) -> None:
    here, there = (fewest(KINDS[tp], demand(r), TPOT, RULES) for r in (rate, rate * more))
    assert here is not None
    assert there is None or there >= here


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 60.0))
def test_the_fewest_is_enough_and_one_less_is_not(rate: float) -> None:
    count = fewest(KINDS[8], demand(rate), TPOT, RULES)
    assert count is not None
    assert enough(KINDS[8], demand(rate), count, TPOT, RULES)
    assert count == 1 or not enough(KINDS[8], demand(rate), count - 1, TPOT, RULES)


def test_a_full_configuration_is_all_that_maximum_clock_carries_and_watts_are_those_of_the_mean() -> None:
    flat, peaked = (configurations(KINDS[4], demand(10.0), top, TPOT, RULES) for top in (10.0, 20.0))
    loads = [one.load for one in flat]
    assert loads == sorted(loads)
    assert loads == pytest.approx([one.load for one in peaked])
    assert enough(KINDS[4], demand(flat[-1].load), 1, TPOT, RULES)
    assert not enough(KINDS[4], demand(1.05 * flat[-1].load), 1, TPOT, RULES)
    assert all(peak.watts < one.watts < one.tp * 700.0 for one, peak in zip(flat, peaked, strict=True))


def test_borders_move_load_between_pools_and_lose_none() -> None:
    kinds = [RequestType(i, o) for i in Size for o in Size]
    types = {kind: Demand(1.0 + n, 100.0 * n, 100.0 * n, 50.0) for n, kind in enumerate(kinds)}
    for border, pools in (("one", 1), ("by input", 3), ("by output", 3), ("nine", 9)):
        made = grouped(types, border)
        assert len(made) == pools
        assert sum(d.rate for d in made.values()) == pytest.approx(45.0)
        tokens = sum(d.rate * d.input_tokens for d in made.values())
        assert tokens == pytest.approx(sum(d.rate * d.input_tokens for d in types.values()))
