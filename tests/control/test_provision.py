"""How many instances a load takes, and which pools should share them."""

from dataclasses import replace

import orjson
import pytest

from control.fleet_solver import solution
from control.floor import Demand
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Provision, Question, provision
from control.sizing import Loaded, Terms, best_count
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
    name: str,
    rate: float,
    reach: tuple[int, int] = LARGE,
    have: int = 4,
    up: int = 4,
    least: int = 1,
    apart: bool = False,
) -> PoolNeed:
    """`apart`: it promises what no other does."""
    demand = Demand(rate, 600.0, 600.0, 200.0) if rate else None
    stock = (Stock(KIND, have, up, Watts(70.0)),)
    return PoolNeed(name, reach, OBJECTIVES, demand, 1.2 * rate, least, stock, (name,) if apart else ())


def asked(*pools: PoolNeed, merged: dict[str, str] | None = None) -> Provision:
    question = Question(pools, merged or {}, Seconds(300.0), PlanRules())
    return provision(question, solution)


def test_a_pool_gets_what_its_load_takes_and_never_less_than_stays_warm() -> None:
    pools = need("busy", 30.0), need("idle", 0.0, least=2), need("cold", 0.0, least=0)
    plan = asked(*(replace(pool, terms=(pool.name,)) for pool in pools))
    assert 1 <= plan.counts["busy"] <= 3
    assert (plan.counts["idle"], plan.counts["cold"]) == (2, 0)
    assert plan.merged == {}
    assert plan.gap is not None


def test_more_load_takes_more() -> None:
    counts = [asked(need("all", rate)).counts["all"] for rate in (1.0, 20.0, 50.0, 75.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("rate", [4.0, 9.0, 16.0, 30.0])
def test_as_many_are_planned_as_the_law_of_one_pool_asks_for(rate: float) -> None:
    pool = need("all", rate, have=12, up=12)
    stock, terms = replace(pool.stock[0], have=12), Terms(OBJECTIVES.tpot)
    assert pool.demand is not None
    alone = best_count(Loaded((stock,), pool.demand, terms), pool.expected)
    assert abs(asked(pool).counts["all"] - alone) <= 1


def test_more_load_than_instances_is_said_and_all_run() -> None:
    plan = asked(need("all", 1000.0, have=3, apart=True), need("idle", 0.0, have=1, apart=True))
    assert plan.counts == {"all": 3, "idle": 1}
    assert plan.short == ("all",)


def test_a_start_that_does_not_pay_back_is_not_planned() -> None:
    """One that draws much while it is stopped is the one to run, if starting it is worth that."""

    def watts(start: float) -> float:
        other = replace(KIND, name="other", start=Seconds(start), start_watts=Watts(700.0))
        stock = Stock(KIND, 1, 1, Watts(0.0)), Stock(other, 1, 0, MODEL.idle_watts)
        busy = Demand(10.0, 600.0, 600.0, 200.0)
        return asked(PoolNeed("all", LARGE, OBJECTIVES, busy, 10.0, 1, stock)).watts

    assert watts(3600.0) - watts(1.0) == pytest.approx(MODEL.idle_watts)


def test_sessions_that_would_be_prefilled_again_keep_an_instance() -> None:
    full = Stock(KIND, 4, 4, Watts(70.0), session_tokens=8e6)
    plan = asked(PoolNeed("all", LARGE, OBJECTIVES, Demand(2.0, 600.0, 600.0, 200.0), 2.0, 1, (full,)))
    assert plan.counts["all"] == 4
    assert asked(need("all", 2.0)).counts["all"] == 1


def test_small_pools_are_merged_into_one_that_takes_them() -> None:
    pools = need("short", 1.0, SMALL, 2, 2), need("medium", 0.5, MIDDLE, 2, 2), need("long", 0.5, LARGE, 2, 2)
    apart, plan = [asked(pool) for pool in pools], asked(*pools)
    assert set(plan.merged) | set(plan.counts) == {"short", "medium", "long"}
    assert sum(plan.counts.values()) < sum(sum(alone.counts.values()) for alone in apart)
    assert plan.watts < sum(alone.watts for alone in apart)
    assert "short" in plan.merged, "the smallest takes nobody"


def test_pools_that_promise_something_else_stay_apart() -> None:
    strict = Objectives(OBJECTIVES.ttft, Seconds(0.03), None, 1.2)
    other = PoolNeed("strict", LARGE, strict, Demand(0.5, 600.0, 600.0, 200.0), 1.0, 1, need("x", 1.0).stock)
    plan = asked(need("all", 0.5), other)
    assert plan.merged == {}


def test_what_is_merged_stays_so_where_a_split_saves_little() -> None:
    pools = need("short", 20.0, SMALL, 3, 3), need("long", 20.0, LARGE, 3, 3)
    free, held = asked(*pools), asked(*pools, merged={"short": "long"})
    assert held.merged == {"short": "long"} or held.watts < 0.97 * free.watts


def test_nobody_asks_for_anything() -> None:
    plan = asked(need("a", 0.0, least=0), need("b", 0.0, least=0))
    assert sum(plan.counts.values()) == 0
    assert plan.watts == 0.0
