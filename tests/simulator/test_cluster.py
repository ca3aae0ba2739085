"""The simulated fleet: nobody is lost, the same seed gives the same run, and it says what the engine says."""

import json
import random
import tracemalloc
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest

from control.admission import AdmissionRules
from control.fleet_solver import solution
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
from simulator.results import Pooled, Run, saving_pct
from simulator.scaling import Elastic, Scaling
from simulator.score import Ended, Everyone, Scorer
from simulator.station import limits_of
from simulator.streams import Merged, Repeated
from simulator.workload import Load

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


def steered(
    arrivals: Load, made: Setup, governor: GovernorRules | None = None, everyone: Everyone | None = None
) -> Run:
    laws = Laws(AdmissionRules(), governor or GovernorRules())
    knowledge = Knowledge(HistoryPredictor(Cuts()))
    scorer = Scorer(made.objectives, made.cuts, hear=None if everyone is None else everyone.hear)
    return Cluster(made, laws, knowledge, random.Random(1).randrange).run(arrivals, scorer)


def each_of(arrivals: Load, made: Setup) -> Ended:
    """What became of every request under the laws."""
    everyone = Everyone()
    steered(arrivals, made, everyone=everyone)
    return everyone.all()


def each_fixed(arrivals: Load, made: Setup, clock: float) -> Ended:
    everyone = Everyone()
    run_fixed(arrivals, made, clock, Scorer(made.objectives, made.cuts, hear=everyone.hear))
    return everyone.all()


def test_everybody_is_served_and_nobody_before_arrival() -> None:
    arrivals = load()
    each = each_of(arrivals, setup())
    assert np.isfinite(each.e2e).all()
    assert (each.ttft > 0.0).all()
    assert (each.e2e >= each.ttft).all()
    assert np.array_equal(each.key, np.arange(len(arrivals)))
    assert np.array_equal(each.at, arrivals.at)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = Everyone(), Everyone()
    joules = [steered(load(), setup(), everyone=each).joules_released for each in (one, other)]
    assert np.array_equal(one.all().e2e, other.all().e2e)
    assert joules[0] == joules[1]


def test_tokens_counted_one_by_one_or_all_at_once_lead_to_the_same_decisions() -> None:
    never_missed = replace(AIMS, e2e=Seconds(1e9))  # an E2E objective has every request looked at
    one, other = Everyone(), Everyone()
    at_once = steered(load(), setup(2), everyone=one)
    one_by_one = steered(load(), setup(2, never_missed), everyone=other)
    assert one_by_one.clock_changes == at_once.clock_changes
    assert np.allclose(other.all().e2e, one.all().e2e, rtol=1e-12, atol=0.0)


def test_a_day_and_a_year_without_a_request_are_the_same_to_who_comes_after() -> None:
    first, year = load(60), 365.0 * 86_400.0

    def with_pause(seconds: float) -> tuple[Run, Ended]:
        at = np.concatenate([first.at, first.at + seconds])
        both, everyone = (np.tile(first.input, 2), np.tile(first.output, 2)), Everyone()
        run = steered(Load(at, *both, Seconds(float(at[-1]))), setup(), everyone=everyone)
        return run, everyone.all()

    day, after_day = with_pause(86_400.0)
    long, after_year = with_pause(year)  # with a tick every 250 ms this would take hours
    assert np.allclose(after_year.e2e, after_day.e2e, rtol=0.0, atol=0.01)  # floats are coarser after a year
    idle = profile().power.p_idle_w * (year - 86_400.0)
    assert long.joules_released - day.joules_released == pytest.approx(idle, rel=1e-9)
    assert len(long.watts) < 20_000, "a timeline of ten seconds each would have three million"
    assert long.watts.sum() * long.step == pytest.approx(long.joules_released, rel=0.01)


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
    each = each_fixed(arrivals, made, 1200.0)
    assert each.ttft == pytest.approx(np.array([job.first_token_at for job in jobs]) - arrivals.at)
    end = max(job.finished_at for job in jobs)
    idle = (1000.0 - end) * made.costs[0].idle_watts
    assert run.joules_released == pytest.approx(engine.energy - idle, rel=1e-6)


def peak(seconds: float) -> int:
    """Bytes that a load of so many seconds takes at most, made as it is served."""
    hour, made = load(500, rate=10.0), setup()
    tracemalloc.start()
    run_fixed(Repeated(hour, Seconds(seconds), 1), made, 1980.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_longer_load_takes_no_more_memory() -> None:
    assert peak(2000.0) - peak(1000.0) < 10_000 * 20, "20 bytes a request; they were 70 when all were held"


def test_static_mode_at_maximum_clock_costs_what_the_engine_costs_there() -> None:
    arrivals, made = load(), setup()
    top = made.costs[0].profile.max_clock
    steady = steered(arrivals, made, GovernorRules(static_clock=MegaHertz(int(top))))
    plain = run_fixed(arrivals, made, top)
    assert steady.joules_released == pytest.approx(plain.joules_released, rel=0.02)
    assert steady.residency.keys() == {int(top)}


def test_the_laws_save_energy_where_there_is_slack() -> None:
    arrivals, made = load(600, rate=4.0), setup()
    policy = Pooled((steered(arrivals, made),))
    baseline = Pooled((run_fixed(arrivals, made, made.costs[0].profile.max_clock),))
    assert saving_pct(policy, baseline) > 15.0


def test_requests_that_go_past_the_gateway_are_served_and_never_taken_for_an_idle_engine() -> None:
    arrivals, made = load(300, rate=4.0), setup()
    top = made.costs[0].profile.max_clock
    everyone_else, some = (
        steered(arrivals, replace(made, bypass=1)),
        steered(arrivals, replace(made, bypass=3)),
    )
    assert some.score.e2e.finite == everyone_else.score.e2e.finite == 300
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
    later = Load(busy.at + quiet.span, busy.input, busy.output, Seconds(busy.span + quiet.span))
    both = Merged((quiet, later))
    here = profile()
    kind = Kind(here.name, PhysicsModel(here), limits_of(here), 1, Seconds(45.0), Watts(98.0))
    scaling = Scaling(Stock(kind, 4, 0, Watts(0.0)), PlanRules(), Seconds(60.0), at_once=1)
    laws = Laws(AdmissionRules(), GovernorRules(), scaling=scaling)
    cluster = Cluster(setup(1), laws, Knowledge(HistoryPredictor(Cuts())), random.Random(1).randrange)
    run = cluster.run(both)
    assert run.instances[0] == 1
    assert 2 <= run.instances.max() <= 4
    assert (np.diff(run.instances) >= -1.0).all(), "one stops at a time"
    assert run.score.e2e.finite == 1800


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
    assert shared.score.e2e.finite == 900
    assert apart.instances.min() >= 3, "one of each pool stays"
    assert shared.instances[-1] < 3
    again, _ = divided(elastic)
    assert (again.joules_released, again.span) == (shared.joules_released, shared.span)


def test_what_is_in_the_prefix_cache_is_not_read_again() -> None:
    whole = load(120, rate=2.0)
    arrivals = replace(whole, cached=np.maximum(0, whole.input - 64))
    plain, cached = each_fixed(whole, setup(), 1980.0), each_fixed(arrivals, setup(), 1980.0)
    long = whole.input > 1000
    assert np.all(cached.ttft[long] < plain.ttft[long])
    joules = [run_fixed(each, setup(), 1980.0).joules_released for each in (arrivals, whole)]
    assert joules[0] < joules[1]
    told, untold = (each_of(arrivals, replace(setup(), cache_seen=seen)) for seen in (True, False))
    assert np.isfinite(told.e2e).all()
    assert not np.array_equal(told.e2e, untold.e2e), "the laws go by what they take for cached"
