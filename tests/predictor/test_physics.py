"""The formulas of engine-profile/1, held to numbers worked out by hand and to what they promise."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.domain import Batch
from joulegate.engine_profile import EngineProfile, LatencyCoefficients, PowerCoefficients, parse_profile
from predictor.physics import PhysicsModel

PROFILES = sorted((Path(__file__).parents[2] / "configs" / "profiles").glob("*.json"))
LATENCY = LatencyCoefficients(
    p=2.0,
    m0_s=0.003,
    m1_s_per_ctx_token=1e-6,
    c0_s=0.001,
    c1_s_per_seq=1e-4,
    pc1_s_per_token=1e-5,
    pc2_s_per_token2=1e-9,
    h0_s=5e-4,
    h1_s_per_seq=1e-5,
    h2_s_per_token=1e-6,
)
POWER = PowerCoefficients(
    p_idle_w=50.0,
    p_static_w=80.0,
    d0_w=100.0,
    dm_w=40.0,
    dc_w=60.0,
    u_sat=0.5,
    s_fixed_share=0.2,
    hm_w=30.0,
    vmin=0.7,
    knee=0.6,
    us_w_s=0.002,
    us_kv_s=1e-6,
    us_tok_s=1e-5,
    us_att_s=1e-9,
    tdp_w=250.0,
    p_off_owned_w=0.0,
    p_start_w=0.0,
)


def by_hand() -> EngineProfile:
    real = parse_profile(json.loads(PROFILES[0].read_text()))
    return replace(real, latency=LATENCY, power=POWER, graph_batches=(1, 2, 4, 8))


def test_one_iteration_worked_out_by_hand() -> None:
    model = PhysicsModel(by_hand())
    half = model.profile.max_clock / 2
    batch = Batch(5, 1000.0, 100, 5000.0)
    # t_cmp = (0.001 + 1e-4*8 + 1e-5*100)/0.5 = 0.0056; t_gemm = sqrt(0.003^2 + 0.0056^2) = 0.00635295
    # + 1e-6*1000 + 1e-9*5000/0.5 + 5e-4 + 1e-5*5 + 1e-6*105
    seconds = 0.00635295 + 0.001 + 1e-5 + 5e-4 + 5e-5 + 1.05e-4
    assert model.iteration_time(batch, half) == pytest.approx(seconds, rel=1e-5)
    # u_mem = 0.003/t; u_flop = (1e-5*105 + 5e-6)/(0.5 t); v = max(0.7, 1 - 0.3*0.5/0.4) = 0.7
    memory, compute = 0.003 / seconds, 0.001055 / (0.5 * seconds)
    g = 0.2 + 0.8 * 0.5 * 0.49
    watts = 80.0 + 30.0 * memory + (100.0 + 40.0 * memory + 60.0 * min(1.0, compute / 0.5)) * g
    assert model.watts(batch, half) == pytest.approx(watts, rel=1e-5)


def test_decode_batches_run_at_the_next_graph_size() -> None:
    model = PhysicsModel(by_hand())
    assert [model.padded(b) for b in (0, 1, 2, 3, 4, 5, 8, 9, 100)] == [0, 1, 2, 4, 4, 8, 8, 9, 100]


def test_a_board_over_its_limit_lowers_its_own_clock_until_it_fits() -> None:
    model = PhysicsModel(by_hand())
    top = model.profile.max_clock
    heavy = Batch(8, 100_000.0, 2000, 2e6)
    assert model.watts(heavy, top) > POWER.tdp_w
    clock, seconds, watts = model.capped(heavy, top)
    assert clock < top
    assert watts <= POWER.tdp_w
    assert seconds == model.iteration_time(heavy, clock)
    assert model.capped(Batch(1, 10.0), model.profile.clocks[0])[0] == model.profile.clocks[0]


@settings(deadline=None)
@given(
    st.sampled_from(PROFILES),
    st.integers(0, 256),
    st.integers(0, 8192),
    st.integers(0, 4096),
)
def test_a_lower_clock_is_never_faster_and_never_draws_more(
    path: Path, batch: int, context: int, tokens: int
) -> None:
    model = PhysicsModel(parse_profile(json.loads(path.read_text())))
    work = Batch(batch, float(batch * context), tokens, tokens * tokens / 2.0)
    times = [model.iteration_time(work, clock) for clock in model.clocks]
    assert all(slow >= fast for slow, fast in pairwise(times))
    more = replace(work, decoding=batch + 1, context_tokens=work.context_tokens + context)
    assert all(model.iteration_time(more, f) >= t for f, t in zip(model.clocks, times, strict=True))
    if batch or tokens:
        assert model.watts(work, model.clocks[0]) <= model.watts(work, model.clocks[-1])
