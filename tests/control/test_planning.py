"""Planner: enough is enough, more at once, fewer after a while."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.floor import Demand
from control.planner import (
    Growth,
    Kind,
    PlanRules,
    Scale,
    best_count,
    best_kind,
    configurations,
    enough,
    fewest,
    grouped,
    scale,
    start_joules,
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


def test_the_best_kind_is_the_one_with_the_least_watts_that_fits() -> None:
    found = best_kind(list(KINDS.values()), demand(34.8), TPOT, 0.0, RULES)
    assert found is not None
    assert enough(found.kind, demand(34.8), found.count, TPOT, RULES)
    for other in KINDS.values():
        alone = best_kind([other], demand(34.8), TPOT, 0.0, RULES)
        assert alone is None or alone.watts >= found.watts


def test_a_load_nothing_can_serve_has_no_answer() -> None:
    assert best_kind(list(KINDS.values()), demand(1e5), TPOT, 0.0, RULES) is None


def test_more_instances_come_at_once() -> None:
    decision, _ = scale(KINDS[8], 1, demand(34.8), TPOT, 0.0, Scale({}), RULES, Seconds(0.0), 1.1)
    assert decision.target > 1
    assert "34.8 requests/s" in decision.sentence


def test_fewer_only_after_a_calm_time_and_one_at_a_time() -> None:
    memory, targets = Scale({}), []
    for now in range(0, 700, 10):
        decision, memory = scale(
            KINDS[8], 6, demand(10.0), TPOT, 0.0, memory, RULES, Seconds(float(now)), 1.1
        )
        targets.append(decision.target)
    assert set(targets[:30]) == {6}
    assert 5 in targets[30:]
    assert min(targets) == 5


def test_a_load_that_doubles_now_and_then_gets_instances_for_twice_the_load_and_a_steady_one_does_not() -> (
    None
):
    steady, bursty = Growth(KINDS[4], Seconds(10.0)), Growth(KINDS[4], Seconds(10.0))
    assert steady.ratio == pytest.approx(1.5)  # nothing seen yet
    for look in range(300):
        steady.see(3.0)
        bursty.see(6.0 if look % 60 > 50 else 3.0)
    assert steady.ratio == pytest.approx(1.0)
    assert bursty.ratio == pytest.approx(2.0)
    counts = [best_count(KINDS[4], demand(20.0), TPOT, 0.0, RULES, g.ratio) for g in (steady, bursty)]
    assert counts[0] is not None
    assert counts[1] is not None
    assert counts[1].count > counts[0].count


def test_starting_costs_what_the_gpus_draw_until_it_serves() -> None:
    assert start_joules(KINDS[4]) == pytest.approx(90.0 * 98.0 * 4)


def test_slower_clocks_carry_less_and_every_configuration_is_enough() -> None:
    made = configurations(KINDS[4], demand(1.0), TPOT, RULES)
    loads = [one.load for one in made]
    assert loads == sorted(loads)
    clock = KINDS[4].model.clocks[-1]
    assert enough(KINDS[4], demand(made[-1].load), 1, TPOT, RULES, clock)
    assert not enough(KINDS[4], demand(1.05 * made[-1].load), 1, TPOT, RULES, clock)
    assert all(one.watts < one.tp * 700.0 for one in made)


def test_borders_move_load_between_pools_and_lose_none() -> None:
    kinds = [RequestType(i, o) for i in Size for o in Size]
    types = {kind: Demand(1.0 + n, 100.0 * n, 100.0 * n, 50.0) for n, kind in enumerate(kinds)}
    for border, pools in (("one", 1), ("by input", 3), ("by output", 3), ("nine", 9)):
        made = grouped(types, border)
        assert len(made) == pools
        assert sum(d.rate for d in made.values()) == pytest.approx(45.0)
        tokens = sum(d.rate * d.input_tokens for d in made.values())
        assert tokens == pytest.approx(sum(d.rate * d.input_tokens for d in types.values()))
