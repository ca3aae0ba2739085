import dataclasses
import math
import random
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.domain import Batch
from joulegate.engine_profile import EngineProfile, parse_profile
from predictor.physics import PhysicsModel
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.jobs import Events, Job
from tests.simulator import naive_engine as naive

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"


def profile(name: str, **limits: int) -> EngineProfile:
    loaded = parse_profile(orjson.loads((PROFILES / f"{name}.json").read_bytes()))
    return dataclasses.replace(loaded, engine=dataclasses.replace(loaded.engine, **limits))


H100 = profile("h100_llama-3.1-8b_tp1")
A100 = profile("a100-40g_llama-3.1-8b_tp1")
H100_TP2 = profile("h100_llama-3.1-70b_tp2")
SHIPPED = (H100, A100, H100_TP2)


@dataclasses.dataclass(frozen=True)
class Case:
    profile: EngineProfile
    requests: tuple[tuple[float, int, int], ...]  # at, prompt, output
    commands: tuple[tuple[float, float], ...]  # at, MHz


@st.composite
def cases(draw: st.DrawFn) -> Case:
    base = draw(st.sampled_from(SHIPPED))
    limits = dataclasses.replace(
        base.engine,
        kv_capacity_tokens=draw(st.sampled_from([300, 900, 4000, base.engine.kv_capacity_tokens])),
        max_num_seqs=draw(st.sampled_from([1, 3, 12, 256])),
        max_num_batched_tokens=draw(st.sampled_from([8, 100, 2048])),
    )
    gaps = st.floats(0.0, 0.6).map(lambda s: round(s, 4))
    rows = draw(st.lists(st.tuples(gaps, st.integers(1, 290), st.integers(1, 60)), min_size=1, max_size=25))
    at, requests = 0.0, []
    for gap, prompt, output in rows:
        at += gap
        requests.append((at, prompt, output))
    clocks = st.sampled_from(base.clocks)
    orders = draw(st.lists(st.tuples(gaps, clocks), max_size=8))
    when, commands = 0.0, []
    for gap, mhz in orders:
        when += gap
        commands.append((when, float(mhz)))
    return Case(dataclasses.replace(base, engine=limits), tuple(requests), tuple(commands))


def build(case: Case) -> tuple[Engine, list[Job]]:
    engine = Engine(EngineCosts(case.profile), case.profile.max_clock)
    jobs = [Job(key, prompt, output) for key, (_, prompt, output) in enumerate(case.requests)]
    for job, (at, _, _) in zip(jobs, case.requests, strict=True):
        engine.submit(job, at)
    for at, mhz in case.commands:
        engine.set_clock(mhz, at)
    return engine, jobs


def reference(case: Case, until: float) -> naive.Outcome:
    requests = [naive.Request(*row) for row in case.requests]
    return naive.run(case.profile, requests, case.profile.max_clock, list(case.commands), until)


def assert_same(jobs: list[Job], energy: float, expected: naive.Outcome) -> None:
    for job, request in zip(jobs, expected.requests, strict=True):
        assert job.first_token_at == pytest.approx(request.first, abs=1e-6, rel=0)
        assert job.finished_at == pytest.approx(request.finished, abs=1e-6, rel=0)
        assert job.preemptions == request.preemptions
    assert energy == pytest.approx(expected.energy, rel=1e-4)


UNTIL = 2_000.0


@given(cases())
@settings(max_examples=150, deadline=None)
def test_closed_form_equals_the_plain_reference(case: Case) -> None:
    engine, jobs = build(case)
    events = engine.advance(UNTIL)
    expected = reference(case, UNTIL)
    assert_same(jobs, engine.energy, expected)
    assert len(events.finished) == len(events.first_tokens) == len(jobs)
    assert len(events.preempted) == expected.preemptions
    assert (engine.running, engine.waiting, engine.kv_tokens, engine.context_tokens) == (0, 0, 0, 0)


@given(cases(), st.lists(st.floats(0.0, 0.5), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_stopping_anywhere_changes_nothing(case: Case, stops: list[float]) -> None:
    engine, jobs = build(case)
    at, energy, seen = 0.0, 0.0, 0
    for stop in stops:
        at += stop
        for job in engine.advance(at).finished:
            assert job.finished_at <= at
            seen += 1
        assert engine.energy >= energy
        energy = engine.energy
    seen += len(engine.advance(UNTIL).finished)
    assert seen == len(jobs)
    assert_same(jobs, engine.energy, reference(case, UNTIL))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_one_iteration_at_a_time_equals_the_plain_reference(case: Case) -> None:
    engine, jobs = build(case)
    tokens = dict.fromkeys(range(len(jobs)), 0)
    now = 0.0
    while engine.running or engine.waiting:
        ends = engine.begin(now)
        if ends is None:
            now = min(at for at, _, _ in case.requests if at > now)
            continue
        for job in engine.producers():
            tokens[job.key] += 1
        engine.complete()
        now = ends
    engine.advance(UNTIL)
    assert_same(jobs, engine.energy, reference(case, UNTIL))
    assert tokens == {job.key: job.output_tokens for job in jobs}


def test_a_power_capped_engine_equals_the_plain_reference() -> None:
    power = dataclasses.replace(H100.power, tdp_w=420.0)
    case = Case(
        dataclasses.replace(H100, power=power),
        tuple((0.05 * i, 700, 120) for i in range(60)),
        ((1.0, 1200.0),),
    )
    engine, jobs = build(case)
    engine.advance(UNTIL)
    expected = reference(case, UNTIL)
    assert len(expected.clocks_used) > 3, "the case must make the board lower its clock"
    assert_same(jobs, engine.energy, expected)


def test_kv_pressure_preempts_and_still_equals_the_plain_reference() -> None:
    tight = profile("h100_llama-3.1-8b_tp1", kv_capacity_tokens=2000)
    case = Case(tight, tuple((0.01 * i, 180, 150) for i in range(30)), ())
    engine, jobs = build(case)
    engine.advance(UNTIL)
    expected = reference(case, UNTIL)
    assert expected.preemptions > 5
    assert_same(jobs, engine.energy, expected)


@given(
    st.sampled_from(SHIPPED),
    st.integers(0, 120),
    st.integers(0, 256),
    st.floats(0.0, 1.0),
    st.integers(0, 2048),
    st.floats(0.0, 5e6),
)
@settings(max_examples=400, deadline=None)
def test_costs_are_the_physics_model(
    profile: EngineProfile, clock: int, decoding: int, fill: float, tokens: int, attention: float
) -> None:
    mhz = profile.clocks[clock % len(profile.clocks)]
    context = int(fill * profile.engine.kv_capacity_tokens) if decoding else 0
    if not tokens:
        attention = 0.0
    if not decoding and not tokens:
        return
    physics = PhysicsModel(profile)
    clock_used, seconds, watts = physics.capped(Batch(decoding, context, tokens, attention), mhz)
    costs = EngineCosts(profile).at(mhz)
    got = costs.mixed(decoding, context, tokens, attention)
    assert got == pytest.approx((seconds, seconds * watts * profile.tp, clock_used), rel=1e-9)
    if not tokens:
        assert costs.decode(decoding, context) == pytest.approx(got, rel=1e-9)


def test_a_clock_acts_on_the_first_iteration_that_starts_late_enough() -> None:
    engine = Engine(EngineCosts(H100), 1980.0)
    engine.submit(Job(0, 100, 500), 0.0)
    engine.advance(1.0)
    engine.set_clock(510.0, 1.0)
    engine.advance(1.0 + H100.actuation.clock_switch_s)
    assert engine.clock == 1980.0
    engine.advance(1.1)
    assert engine.clock == 510.0


def test_an_idle_engine_draws_idle_power() -> None:
    engine = Engine(EngineCosts(H100_TP2), 1980.0, now=5.0)
    assert engine.advance(15.0) == Events()
    assert engine.energy == pytest.approx(2 * 70.0 * 10.0)
    assert engine.watts == 2 * 70.0


@pytest.mark.parametrize("stage", ["inbox", "waiting", "partial", "decoding", "in flight"])
def test_a_cancelled_job_leaves_nothing_behind(stage: str) -> None:
    engine = Engine(EngineCosts(profile("h100_llama-3.1-8b_tp1", max_num_seqs=1)), 1980.0)
    first, second = Job(0, 5000, 10), Job(1, 100, 10)
    engine.submit(first, 0.0)
    engine.submit(second, 0.0 if stage == "waiting" else 0.5)
    victim = second if stage in {"inbox", "waiting"} else first
    if stage == "waiting":
        engine.advance(0.01)
    elif stage == "partial":
        engine.begin(0.0)
        engine.complete()
    elif stage == "decoding":
        while engine.decoding == 0:
            engine.begin(0.0)
            engine.complete()
    elif stage == "in flight":
        engine.begin(0.0)
    engine.cancel(victim)
    events = engine.advance(10.0)
    other = first if victim is second else second
    assert events.finished == [other]
    assert math.isnan(victim.finished_at)
    assert (engine.running, engine.waiting, engine.kv_tokens, engine.context_tokens) == (0, 0, 0, 0)


def test_jobs_must_come_in_order_of_time() -> None:
    engine = Engine(EngineCosts(H100), 1980.0)
    engine.submit(Job(0, 10, 10), 2.0)
    with pytest.raises(ValueError, match="in order of time"):
        engine.submit(Job(1, 10, 10), 1.0)


def test_generated_counts_what_is_out() -> None:
    engine = Engine(EngineCosts(H100), 1980.0)
    job = Job(0, 10, 50)
    engine.submit(job, 0.0)
    for expected in range(1, 50):
        engine.begin(0.0)
        engine.complete()
        assert engine.generated(job) == expected
        assert engine.context_tokens == 10 + expected


def test_noise_scales_time_and_energy_alike() -> None:
    engine, quiet = (Engine(EngineCosts(H100), 1980.0, noise=n) for n in (lambda: 1.5, None))
    jobs = [Job(0, 10, 50), Job(0, 10, 50)]
    for each, job in zip((engine, quiet), jobs, strict=True):
        each.submit(job, 0.0)
        each.advance(job.output_tokens * 1.0)
    assert jobs[0].finished_at == pytest.approx(1.5 * jobs[1].finished_at)


@given(cases(), st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(0, 30)), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_cancelling_at_any_time_keeps_the_books(case: Case, orders: list[tuple[float, int]]) -> None:
    engine, jobs = build(case)
    now, finished, cancelled = 0.0, set[int](), set[int]()
    for gap, victim in orders:
        now += gap
        finished |= {job.key for job in engine.advance(now).finished}
        if victim < len(jobs) and victim not in finished | cancelled:
            engine.cancel(jobs[victim])
            cancelled.add(victim)
    last = {job.key for job in engine.advance(UNTIL).finished}
    assert not last & (finished | cancelled)
    assert finished | last | cancelled == set(range(len(jobs)))
    assert (engine.running, engine.waiting, engine.decoding) == (0, 0, 0)
    assert (engine.kv_tokens, engine.context_tokens) == (0, 0)


def test_nothing_is_seen_before_quiet_until() -> None:
    """Asked at every step of a busy minute: first tokens and completions come no earlier."""
    costs, draw = EngineCosts(profile("h100_llama-3.1-8b_tp1")), random.Random(5)
    engine, now, quiet = Engine(costs, 1980.0), 0.0, math.inf
    for key in range(400):
        now += draw.expovariate(8.0)
        events = engine.advance(now)
        for job in (*events.first_tokens, *events.finished):
            happened = job.first_token_at if job in events.first_tokens else job.finished_at
            assert happened >= quiet - 1e-9
        if draw.random() < 0.3:
            engine.set_clock(draw.choice((600.0, 1200.0, 1980.0)), now)
        if draw.random() < 0.5:
            engine.submit(Job(key, draw.randrange(1, 3000), draw.randrange(1, 200)), now)
        quiet = engine.quiet_until()
        assert quiet >= now
