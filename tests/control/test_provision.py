"""How many instances a load takes, and which pools should share them."""

from dataclasses import replace

import orjson
import pytest

from control.fleet_plan import greedy
from control.fleet_solver import solve
from control.floor import Demand
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Provision, Question, Solution, provision
from control.state import Limits
from joulegate.domain import Objectives
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds, Watts
from predictor.physics import PhysicsModel

PROFILE = parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes()))
MODEL = PhysicsModel(PROFILE)
KIND = Kind(
    "h100",
    MODEL,
    Limits(256, 8192, PROFILE.engine.kv_capacity_tokens),
    1,
    Seconds(5.0),
    Watts(98.0),
)
OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, 1.2)
SMALL, MIDDLE, LARGE = (1, 1), (2, 2), (2, 2)


def need(
    name: str, rate: float, reach: tuple[int, int] = LARGE, have: int = 4, up: int = 4, least: int = 1
) -> PoolNeed:
    demand = Demand(rate, 600.0, 600.0, 200.0) if rate else None
    return PoolNeed(name, reach, OBJECTIVES, demand, least, (Stock(KIND, have, up, Watts(70.0)),))


def asked(*pools: PoolNeed, elastic: bool = False, merged: dict[str, str] | None = None) -> Provision:
    question = Question(pools, elastic, merged or {}, Seconds(300.0), PlanRules())
    return provision(
        question,
        lambda *words: Solution((found := solve(*words)).plan, found.gap),
        lambda *words: Solution(greedy(*words), None),
    )


def test_a_pool_gets_what_its_load_takes_and_never_less_than_stays_warm() -> None:
    plan = asked(need("busy", 30.0), need("idle", 0.0, least=2), need("cold", 0.0, least=0))
    assert 1 <= plan.counts["busy"] <= 3
    assert (plan.counts["idle"], plan.counts["cold"]) == (2, 0)
    assert plan.merged == {}
    assert plan.gap is not None


def test_more_load_takes_more() -> None:
    counts = [asked(need("all", rate)).counts["all"] for rate in (1.0, 25.0, 60.0, 90.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_more_load_than_instances_is_said_and_all_run() -> None:
    plan = asked(need("all", 1000.0), need("idle", 0.0))
    assert plan.counts == {"all": 4, "idle": 1}
    assert plan.short == ("all",)


def test_a_start_that_does_not_pay_back_is_not_planned() -> None:
    dear = replace(KIND, start=Seconds(3600.0), start_watts=Watts(700.0))
    busy = Demand(23.5, 600.0, 600.0, 200.0)
    few, many = (
        asked(PoolNeed("all", LARGE, OBJECTIVES, busy, 1, (Stock(dear, 4, up, Watts(70.0)),)))
        for up in (1, 4)
    )
    assert (few.counts["all"], many.counts["all"]) == (1, 2)
    assert asked(need("all", 23.5, up=1)).counts["all"] == 2, "a cheap start pays back"


def test_sessions_that_would_be_prefilled_again_keep_an_instance() -> None:
    full = Stock(KIND, 4, 4, Watts(70.0), session_tokens=8e6)
    plan = asked(PoolNeed("all", LARGE, OBJECTIVES, Demand(2.0, 600.0, 600.0, 200.0), 1, (full,)))
    assert plan.counts["all"] == 4
    assert asked(need("all", 2.0)).counts["all"] == 1


def test_small_pools_are_merged_into_one_that_takes_them() -> None:
    pools = need("short", 1.0, SMALL, 2, 2), need("medium", 0.5, MIDDLE, 2, 2), need("long", 0.5, LARGE, 2, 2)
    apart, plan = asked(*pools), asked(*pools, elastic=True)
    assert set(apart.counts) == {"short", "medium", "long"}
    assert set(plan.merged) | set(plan.counts) == {"short", "medium", "long"}
    assert sum(plan.counts.values()) < sum(apart.counts.values())
    assert plan.watts < apart.watts
    assert "short" in plan.merged, "the smallest takes nobody"


def test_pools_that_promise_something_else_stay_apart() -> None:
    strict = Objectives(OBJECTIVES.ttft, Seconds(0.03), None, 1.2)
    other = PoolNeed("strict", LARGE, strict, Demand(0.5, 600.0, 600.0, 200.0), 1, need("x", 1.0).stock)
    plan = asked(need("all", 0.5), other, elastic=True)
    assert plan.merged == {}


def test_what_is_merged_stays_so_where_a_split_saves_little() -> None:
    pools = need("short", 20.0, SMALL, 3, 3), need("long", 20.0, LARGE, 3, 3)
    free, held = asked(*pools, elastic=True), asked(*pools, elastic=True, merged={"short": "long"})
    assert held.merged == {"short": "long"} or held.watts < 0.97 * free.watts


@pytest.mark.parametrize("elastic", [False, True])
def test_nobody_asks_for_anything(elastic: bool) -> None:
    plan = asked(need("a", 0.0, least=0), need("b", 0.0, least=0), elastic=elastic)
    assert sum(plan.counts.values()) == 0
    assert plan.watts == 0.0
