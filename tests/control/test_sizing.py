"""How many instances run: enough at maximum clock, more at once, fewer after a while and if it pays."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.floor import Demand
from control.planner import Kind, PlanRules, Stock, carries, enough
from control.sizing import (
    LOOK,
    MEMORY,
    Growth,
    Loaded,
    Seen,
    Sizing,
    Terms,
    best_count,
    best_kind,
    length_bias,
    pays,
)
from control.state import Limits
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds, Watts
from predictor.physics import PhysicsModel

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
TPOT, RULES, CALM = Seconds(0.1), PlanRules(), Seconds(60.0)
TERMS = Terms(TPOT)
AT_TOP = Terms(TPOT, rules=PlanRules(full_speed=True))


def stock(tp: int, have: int = 32, stopped: float = 0.0) -> Stock:
    profile = parse_profile(json.loads((PROFILES / f"h100_llama-3.1-70b_tp{tp}.json").read_text()))
    engine = profile.engine
    limits = Limits(engine.max_num_seqs, engine.max_num_batched_tokens, engine.kv_capacity_tokens)
    kind = Kind(profile.name, PhysicsModel(profile), limits, tp, Seconds(90.0), Watts(98.0))
    return Stock(kind, have, 0, Watts(stopped))


STOCKS = {tp: stock(tp) for tp in (2, 4, 8)}
ONE = carries(STOCKS[4].kind, Demand(1.0, 1100.0, 1100.0, 210.0), TPOT, RULES)


def demand(rate: float) -> Demand:
    return Demand(rate, 1100.0, 1100.0, 210.0)


def counts(sizing: Sizing, rates: list[float], up: int = 1, least: int = 1, have: int = 32) -> list[int]:
    """One look at each rate; what is asked for runs by the next."""
    found = []
    for look, rate in enumerate(rates):
        now = Seconds(look * LOOK)
        load = demand(rate) if rate else None
        sizing.look((stock(4, have),), Seen(load, Seconds(1000.0), 1.0), up, TERMS, now)
        up = min(have, sizing.count(up, least, now))
        found.append(up)
    return found


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 60.0), st.floats(1.0, 2.0), st.sampled_from([4, 8]))
def test_what_runs_is_enough_at_maximum_clock_for_what_the_load_may_become(
    rate: float, grown: float, tp: int
) -> None:
    count = best_count(Loaded((STOCKS[tp],), demand(rate), TERMS), grown * rate)
    assert count == 32 or enough(STOCKS[tp].kind, demand(grown * rate), count, TPOT, RULES)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 40.0), st.floats(1.0, 1.5))
def test_more_load_to_come_never_asks_for_fewer(rate: float, more: float) -> None:
    here, there = (best_count(Loaded((STOCKS[4],), demand(rate), TERMS), rate * by) for by in (1.0, more))
    assert there >= here


def test_where_clocks_are_not_ours_the_fewest_run() -> None:
    for rate in (3.0, 10.0, 30.0):
        fewest = next(n for n in range(1, 33) if rate <= n * ONE)
        assert best_count(Loaded((STOCKS[4],), demand(rate), AT_TOP), rate) == fewest
        assert best_count(Loaded((STOCKS[4],), demand(rate), TERMS), rate) >= fewest


def test_kinds_that_are_mixed_count_for_what_each_carries() -> None:
    large, small = stock(8, have=1), stock(2, have=8)
    mixed = best_count(
        Loaded((large, small), demand(12.0), Terms(TPOT, rules=PlanRules(full_speed=True))), 12.0
    )
    rates = [carries(each.kind, demand(1.0), TPOT, RULES) for each in (large, small)]
    assert rates[0] + (mixed - 1) * rates[1] >= 12.0 or mixed == 9
    assert mixed == 1 or rates[0] + (mixed - 2) * rates[1] < 12.0


def test_a_load_that_nothing_carries_takes_all_there_is() -> None:
    assert best_count(Loaded((stock(4, have=3),), demand(1e4), TERMS), 1e4) == 3


def test_the_best_kind_is_the_one_with_the_least_watts_that_carries_it() -> None:
    found = best_kind(list(STOCKS.values()), demand(34.8), TERMS)
    assert found is not None
    assert enough(found[0].kind, demand(34.8), found[1], TPOT, RULES)
    assert best_kind(list(STOCKS.values()), demand(1e5), TERMS) is None


def test_more_run_at_once() -> None:
    found = counts(Sizing(CALM), [2.0 * ONE] * 40 + [6.0 * ONE])
    assert found[-1] >= 6 > found[-2]


def test_nothing_stops_because_nothing_has_been_seen_yet() -> None:
    sizing = Sizing(CALM)
    sizing.look((stock(4),), Seen(None, Seconds(0.0), 1.0), 7, TERMS, Seconds(0.0))
    assert [sizing.count(7, 1, Seconds(now)) for now in (0.0, 5.0, CALM, CALM + 1.0)] == [7, 7, 7, 1]


def test_who_knows_what_comes_plans_for_that_and_not_for_growth() -> None:
    found = []
    for ahead in (None, 2.0 * ONE, 5.5 * ONE):
        sizing = Sizing(CALM)
        sizing.look(
            (stock(4),), Seen(demand(2.0 * ONE), Seconds(1000.0), 1.0, ahead), 1, AT_TOP, Seconds(0.0)
        )
        found.append(sizing.count(1, 1, Seconds(0.0)))
    assert found == [3, 2, 6]


def test_fewer_run_after_a_calm_time() -> None:
    found = counts(Sizing(CALM), [6.0 * ONE] * 40 + [2.0 * ONE] * 40)
    calm = int(CALM / LOOK)
    assert min(found[40 : 40 + calm]) >= 6
    assert 2 <= found[-1] < 6


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0.9, 1.1), min_size=60, max_size=60))
def test_a_load_that_only_flickers_is_no_reason_to_stop_and_start(noise: list[float]) -> None:
    settled = counts(Sizing(Seconds(300.0)), [3.5 * ONE * by for by in noise])[30:]
    changes = sum(a != b for a, b in pairwise(settled))
    assert changes <= 2


def test_never_fewer_than_stay_warm_and_none_where_none_need_to() -> None:
    assert counts(Sizing(CALM), [0.0] * 20, up=5, least=2)[-1] == 2
    assert counts(Sizing(CALM), [0.0] * 20, up=5, least=0)[-1] == 0
    assert counts(Sizing(CALM), [1.0] * 20, up=5, least=0)[-1] == 1


def test_before_the_load_is_known_nothing_stops_and_what_is_there_may_ask_for_more() -> None:
    sizing = Sizing(CALM)
    sizing.look((STOCKS[4],), Seen(demand(0.1 * ONE), Seconds(5.0), 1.0), 3, TERMS, Seconds(0.0))
    assert sizing.count(3, 1, Seconds(0.0)) == 3
    assert sizing.count(3, 5, Seconds(1.0)) == 5
    assert not sizing.due(Seconds(1.0))
    assert sizing.due(Seconds(float(LOOK)))


def test_without_a_latency_model_what_runs_goes_on() -> None:
    sizing = Sizing(CALM)
    sizing.unknown(Seconds(0.0))
    assert [sizing.count(3, least, Seconds(0.0)) for least in (1, 4)] == [3, 4]


def test_stopping_what_would_cost_more_to_start_again_does_not_pay() -> None:
    asleep = stock(4, stopped=STOCKS[4].kind.model.idle_watts)
    few = demand(0.5 * ONE)
    assert pays(Loaded((STOCKS[4],), few, TERMS), 4, 1, Seconds(300.0))
    assert not pays(Loaded((STOCKS[4],), few, TERMS), 4, 1, Seconds(10.0))
    assert not pays(Loaded((asleep,), few, TERMS), 2, 1, Seconds(1.0))


def test_a_load_that_doubles_now_and_then_gets_twice_the_instances_and_a_steady_one_does_not() -> None:
    steady, bursty, dipping = Growth(), Growth(), Growth()
    assert steady.ratio == pytest.approx(1.5)  # nothing seen yet
    for look in range(MEMORY):
        steady.see(3.0, Seconds(90.0))
        bursty.see(6.0 if look % 60 > 50 else 3.0, Seconds(90.0))
        dipping.see(1.5 if look % 60 > 58 else 3.0, Seconds(90.0))
    assert steady.ratio == pytest.approx(1.0)
    assert steady.expected == pytest.approx(3.0)
    assert bursty.ratio == pytest.approx(2.0)
    assert dipping.ratio == pytest.approx(1.0), "a dip is no growth to come"
    for _ in range(MEMORY):
        bursty.see(3.0, Seconds(90.0))
    assert bursty.ratio == pytest.approx(1.0), "after an hour without a burst"


def test_one_burst_within_the_hour_is_planned_for_as_long_as_a_start_takes() -> None:
    for start in (5.0, 90.0, 600.0):
        growth = Growth()
        for look in range(MEMORY):
            growth.see(9.0 if 200 <= look < 220 else 3.0, Seconds(start))
        assert growth.expected == pytest.approx(9.0)


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=200), st.floats(0.0, 400.0))
def test_never_less_than_there_is_now_is_expected(loads: list[float], start: float) -> None:
    growth = Growth()
    for load in loads:
        growth.see(load, Seconds(start))
        assert growth.expected >= load


def test_types_that_come_to_a_pool_from_another_are_no_growth() -> None:
    told, untold = Sizing(CALM), Sizing(CALM)
    for sizing in (told, untold):
        counts(sizing, [2.0 * ONE] * 60)
    now = 60 * LOOK
    told.restart(Seconds(now))
    for sizing in (told, untold):
        for look in range(60):
            rate = (2.0 if look < 2 else 6.0) * ONE  # a rate is a mean: the others come into sight bit by bit
            seen, at = Seen(demand(rate), Seconds(1000.0), 1.0), Seconds(now + look * LOOK)
            sizing.look((STOCKS[4],), seen, 8, TERMS, at)
    assert untold.growth.ratio == pytest.approx(3.0, rel=0.05)
    assert told.growth.ratio < 1.6
    assert told.growth.expected >= 6.0


def test_lengths_that_came_out_longer_weigh_on_the_load() -> None:
    assert length_bias([(300.0, 200.0), (100.0, 200.0)]) == pytest.approx(1.0)
    assert length_bias([(900.0, 100.0)]) == pytest.approx(3.0), "within bounds"
    assert length_bias([]) == pytest.approx(1.0)
