"""The simulated fleet: nobody is lost, the same seed gives the same run, and it says what the engine says."""

import json
import random
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest

from control.admission import AdmissionRules
from control.fleet_solver import solution
from control.floor import Demand
from control.governor import GovernorRules
from control.planner import Kind, PlanRules, Stock
from joulegate.domain import Cuts, Objectives
from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.length import HistoryPredictor
from predictor.physics import PhysicsModel
from simulator.cluster import Cluster, Knowledge, Laws, Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.jobs import Job
from simulator.results import Pooled, Run, saving_ci, saving_pct, why_not
from simulator.scaling import Elastic, Scaling
from simulator.station import limits_of
from simulator.workload import (
    Daily,
    Foresight,
    Load,
    Recipe,
    constant,
    daily,
    half,
    merged,
    peak_minute,
    scale,
    shifted,
)

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)


def profile(name: str = "h100_llama-3.1-8b_tp1") -> EngineProfile:
    return parse_profile(json.loads((PROFILES / f"{name}.json").read_text()))


def load(count: int = 300, rate: float = 6.0, seed: int = 1) -> Load:
    draw = np.random.default_rng(seed)
    at = np.cumsum(draw.exponential(1.0 / rate, count))
    tokens_in = draw.integers(20, 3000, count)
    tokens_out = draw.integers(1, 400, count)
    return Load(at, tokens_in, tokens_out, Seconds(float(at[-1])))


def setup(instances: int = 1, objectives: Objectives = AIMS) -> Setup:
    costs = EngineCosts(profile())
    return Setup((costs,) * instances, objectives)


def steered(arrivals: Load, made: Setup, governor: GovernorRules | None = None) -> Run:
    laws = Laws(AdmissionRules(), governor or GovernorRules())
    knowledge = Knowledge(HistoryPredictor(Cuts()))
    return Cluster(made, laws, knowledge, random.Random(1).randrange).run(arrivals)


def test_everybody_is_served_and_nobody_before_arrival() -> None:
    arrivals = load()
    run = steered(arrivals, setup())
    assert np.isfinite(run.e2e).all()
    assert (run.ttft > 0.0).all()
    assert (run.e2e >= run.ttft).all()
    assert len(run.ttft) == len(arrivals)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = steered(load(), setup()), steered(load(), setup())
    assert np.array_equal(one.e2e, other.e2e)
    assert one.joules_released == other.joules_released


def test_tokens_counted_one_by_one_or_all_at_once_lead_to_the_same_decisions() -> None:
    never_missed = replace(AIMS, e2e=Seconds(1e9))  # an E2E objective has every request looked at
    at_once, one_by_one = steered(load(), setup(2)), steered(load(), setup(2, never_missed))
    assert one_by_one.clock_changes == at_once.clock_changes
    assert np.allclose(one_by_one.e2e, at_once.e2e, rtol=1e-12, atol=0.0)


def test_a_day_and_a_year_without_a_request_are_the_same_to_who_comes_after() -> None:
    first, year = load(60), 365.0 * 86_400.0

    def with_pause(seconds: float) -> Run:
        at = np.concatenate([first.at, first.at + seconds])
        both = (np.tile(first.input, 2), np.tile(first.output, 2))
        return steered(Load(at, *both, Seconds(float(at[-1]))), setup())

    day, long = with_pause(86_400.0), with_pause(year)  # with a tick every 250 ms this would take hours
    assert np.allclose(long.e2e, day.e2e, rtol=0.0, atol=0.01)  # floats are coarser after a year
    idle = profile().power.p_idle_w * (year - 86_400.0)
    assert long.joules_released - day.joules_released == pytest.approx(idle, rel=1e-9)


def test_without_a_gateway_the_run_is_the_engine_alone() -> None:
    arrivals, made = load(100), setup()
    run = run_fixed(arrivals, made, 1200.0)
    engine = Engine(made.costs[0], 1200.0)
    jobs = [
        Job(n, int(i), int(o)) for n, (i, o) in enumerate(zip(arrivals.input, arrivals.output, strict=True))
    ]
    for job, at in zip(jobs, arrivals.at.tolist(), strict=True):
        engine.submit(job, at)
    engine.advance(1000.0)
    assert run.ttft == pytest.approx(np.array([job.first_token_at for job in jobs]) - arrivals.at)
    end = max(job.finished_at for job in jobs)
    idle = (1000.0 - end) * made.costs[0].idle_watts
    assert run.joules_released == pytest.approx(engine.energy - idle, rel=1e-6)


def test_static_mode_at_maximum_clock_costs_what_the_engine_costs_there() -> None:
    arrivals, made = load(), setup()
    top = made.costs[0].profile.max_clock
    steady = steered(arrivals, made, GovernorRules(static_clock=MegaHertz(int(top))))
    plain = run_fixed(arrivals, made, top)
    assert steady.joules_released == pytest.approx(plain.joules_released, rel=0.02)
    assert steady.residency.keys() == {int(top)}


def test_the_laws_save_energy_where_there_is_slack() -> None:
    arrivals, made = load(600, rate=4.0), setup()
    policy = Pooled((steered(arrivals, made),), AIMS)
    baseline = Pooled((run_fixed(arrivals, made, made.costs[0].profile.max_clock),), AIMS)
    assert saving_pct(policy, baseline) > 15.0


def test_requests_that_go_past_the_gateway_are_served_and_never_taken_for_an_idle_engine() -> None:
    arrivals, made = load(300, rate=4.0), setup()
    top = made.costs[0].profile.max_clock
    everyone_else, some = (
        steered(arrivals, replace(made, bypass=1)),
        steered(arrivals, replace(made, bypass=3)),
    )
    assert np.isfinite(some.e2e).all()
    assert np.isfinite(everyone_else.e2e).all()
    assert some.residency.get(int(top), 0.0) < 0.5 * some.span
    assert everyone_else.residency[int(top)] > 0.5 * everyone_else.span  # a load nobody knows, but for pauses


def test_clock_residency_covers_the_run() -> None:
    run = steered(load(), setup(2))
    assert sum(run.residency.values()) == pytest.approx(2 * run.span)
    assert run.gpus_avg == pytest.approx(2.0)


def test_lowerings_are_at_least_a_second_apart() -> None:
    arrivals, made = load(600), setup()
    run = steered(arrivals, made)
    assert run.clock_changes <= 2 * (run.span + 1)


def test_instances_come_and_go_with_the_load_and_a_start_takes_its_time_and_energy() -> None:
    quiet, busy = load(300, rate=4.0), load(1500, rate=25.0, seed=2)
    both = merged(
        [quiet, Load(busy.at + quiet.span, busy.input, busy.output, Seconds(busy.span + quiet.span))]
    )
    here = profile()
    kind = Kind(here.name, PhysicsModel(here), limits_of(here), 1, Seconds(45.0), Watts(98.0))
    scaling = Scaling(Stock(kind, 4, 0, Watts(0.0)), PlanRules(), Seconds(60.0), at_once=1)
    laws = Laws(AdmissionRules(), GovernorRules(), scaling=scaling)
    cluster = Cluster(setup(1), laws, Knowledge(HistoryPredictor(Cuts())), random.Random(1).randrange)
    run = cluster.run(both)
    assert run.instances[0] == 1
    assert 2 <= run.instances.max() <= 4
    assert (np.diff(run.instances) >= -1.0).all(), "one stops at a time"
    assert np.isfinite(run.e2e).all()


def divided(elastic: Elastic | None) -> tuple[Run, Knowledge]:
    """Six instances in three pools by output size, of which one would do."""
    here = profile()
    kind = Kind(here.name, PhysicsModel(here), limits_of(here), 1, Seconds(45.0), Watts(98.0))
    scaling = Scaling(Stock(kind, 6, 0, Watts(0.0)), PlanRules(), Seconds(30.0), 1, elastic)
    made = replace(setup(6), border="by output", places=("S", "S", "M", "M", "L", "L"))
    laws, knowledge = (
        Laws(AdmissionRules(), GovernorRules(), scaling=scaling),
        Knowledge(HistoryPredictor(Cuts())),
    )
    run = Cluster(made, laws, knowledge, random.Random(1).randrange).run(load(900))
    return run, knowledge


def test_pools_that_cost_more_apart_share_their_instances_and_nobody_is_lost() -> None:
    apart, as_configured = divided(None)
    elastic = Elastic(Seconds(20.0), 0.9, partial(solution, limit=inf))
    shared, knowledge = divided(elastic)
    assert as_configured.planned.merged == {}
    assert knowledge.planned.merged == {"S": "L", "M": "L"}
    assert {each.pool for each in knowledge.planned.standing} == {"L"}
    assert [each.home for each in knowledge.planned.standing] == ["S", "S", "M", "M", "L", "L"]
    assert np.isfinite(shared.e2e).all()
    assert shared.gpus_avg < apart.gpus_avg
    assert shared.joules_released < apart.joules_released
    assert apart.instances.min() >= 3, "one of each pool stays"
    again, _ = divided(elastic)
    assert np.array_equal(again.e2e, shared.e2e)


# -- workload


def test_scaling_keeps_lengths_and_the_mean_count() -> None:
    base = load(2000)
    bigger = scale(base, 1.5, 7)
    assert len(bigger) == pytest.approx(3000, rel=0.03)
    assert (np.diff(bigger.at) >= 0.0).all()
    assert bigger.at.min() >= 0.0
    assert bigger.at.max() <= base.span
    assert set(zip(bigger.input, bigger.output, strict=True)) <= set(
        zip(base.input, base.output, strict=True)
    )


def test_halves_are_the_whole() -> None:
    base = load(1000)
    first, second = half(base, second=False), half(base, second=True)
    assert len(first) + len(second) == 1000
    assert second.at.min() >= 0.0
    assert first.span == second.span == pytest.approx(base.span / 2)


def test_a_constant_rate_has_its_rate() -> None:
    made = constant(load(), 8.0, Seconds(500.0), 3)
    assert len(made) == 4000
    assert peak_minute(made) == pytest.approx(8.0, rel=0.2)


def test_a_day_has_its_mean_its_peak_and_its_valley() -> None:
    hours = np.arange(0.0, 24.0, 0.01)
    shape = daily(hours, 0.5, 1.2, 14.0)
    assert shape.mean() == pytest.approx(1.0, abs=1e-3)
    assert (shape.max(), hours[shape.argmax()]) == pytest.approx((1.7, 14.0), abs=1e-2)
    assert shape.min() == pytest.approx(0.5, abs=1e-3)
    made = Recipe(load(2000), day=Daily(1.0, 0.5, 1.2, 14.0)).load(1.0, 3)
    assert len(made) == pytest.approx(86_400, rel=0.03)
    assert (np.diff(made.at) >= 0.0).all()
    assert 0.0 <= made.at.min() <= made.at.max() <= 86_400.0
    by_hour = np.bincount((made.at // 3600).astype(int), minlength=24) / 3600.0
    assert by_hour[14] == pytest.approx(1.7, rel=0.15)


def test_a_shifted_load_has_the_same_requests_and_two_traces_are_served_together() -> None:
    base = load(500)
    moved = shifted(base, 20.0)
    assert sorted(zip(base.input, base.output, strict=True)) == sorted(
        zip(moved.input, moved.output, strict=True)
    )
    assert (np.diff(moved.at) >= 0.0).all()
    both = Recipe(base, also=((load(300, seed=9), 2.0),)).load(1.0, 0)
    assert len(both) == 1100


# -- counting


def results() -> Run:
    return run_fixed(load(200), setup(), 1980.0)


def _changed(run: Run, changes: dict[str, object]) -> Run:
    return replace(run, **changes)  # type: ignore[arg-type]


def test_a_run_counts_against_itself() -> None:
    pooled = Pooled((results(),), AIMS)
    assert why_not(pooled, pooled) == []


def test_late_first_tokens_a_lost_request_and_long_gaps_each_keep_a_saving_from_counting() -> None:
    run = results()
    baseline = Pooled((run,), AIMS)
    lost = run.ttft.copy()
    lost[: len(lost) // 50] = np.inf
    late = Pooled((_changed(run, {"ttft": lost, "tpot": np.where(np.isinf(lost), np.inf, run.tpot)}),), AIMS)
    assert any(reason.startswith("attainment") for reason in why_not(late, baseline))
    slow = Pooled((_changed(run, {"ttft": run.ttft + 0.5}),), AIMS)
    assert any("P99 TTFT of S" in reason for reason in why_not(slow, baseline))


def test_energy_is_per_served_token() -> None:
    run = results()
    baseline, lost = Pooled((run,), AIMS), run.ttft.copy()
    lost[: len(lost) // 2] = np.inf
    half_served = Pooled((_changed(run, {"ttft": lost}),), AIMS)
    assert saving_pct(half_served, baseline) < -50.0


def test_the_interval_of_equal_savings_is_narrow_and_holds_them() -> None:
    runs = [run_fixed(load(200, seed=s), setup(), 1980.0) for s in range(3)]
    cheaper = [_changed(run, {"joules_released": 0.7 * run.joules_released}) for run in runs]
    interval = saving_ci(Pooled(tuple(cheaper), AIMS), Pooled(tuple(runs), AIMS))
    assert interval is not None
    assert interval == pytest.approx((30.0, 30.0), abs=1e-6)


def test_foresight_sees_the_work_of_the_busiest_ten_seconds_to_come() -> None:
    at = np.concatenate([np.arange(0.0, 60.0, 0.5), np.arange(30.25, 40.0, 0.5)])
    order = np.argsort(at)
    tokens = np.where((at >= 50.0), 300, 100)[order]
    load = Load(at[order], tokens, np.full(len(at), 20), Seconds(60.0))
    like, foresight = Demand(2.0, 100.0, 100.0, 20.0), Foresight(load)
    assert [foresight.most(now, 20.0, like) for now in (0.0, 20.0, 40.0)] == pytest.approx([2.0, 4.0, 6.0])
    assert foresight.mean(0.0, 30.0) == Demand(2.0, 100.0, 100.0, 20.0)
    assert foresight.most(1000.0, 20.0, like) == foresight.most(50.0, 10.0, like), "the end goes on"


def test_what_is_in_the_prefix_cache_is_not_read_again() -> None:
    whole = load(120, rate=2.0)
    arrivals = replace(whole, cached=np.maximum(0, whole.input - 64))
    plain, cached = run_fixed(whole, setup(), 1980.0), run_fixed(arrivals, setup(), 1980.0)
    long = whole.input > 1000
    assert np.all(cached.ttft[long] < plain.ttft[long])
    assert cached.joules_released < plain.joules_released
    told, untold = (steered(arrivals, replace(setup(), cache_seen=seen)) for seen in (True, False))
    assert np.isfinite(told.e2e).all()
    assert not np.array_equal(told.e2e, untold.e2e), "the laws go by what they take for cached"
