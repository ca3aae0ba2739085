"""Physics found again in sweeps whose truth is known, and the bars of learned models on them."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from joulegate.domain import Batch
from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.units import Seconds
from predictor.latency_data import Engine, Row, Sweep, merged, read_sweeps
from predictor.latency_evaluate import (
    few_shot,
    leave_one_clock_out,
    leave_one_load_out,
    predict,
    random_split,
    score,
)
from predictor.latency_fit import VLLM_GRAPHS, fit_latency, iteration_seconds, pad, work_of
from predictor.latency_residual import fit_residual
from predictor.latency_train import train
from predictor.power_fit import fit_power, watts_of
from predictor.sweep_emulated import Blur, emulated_sweep, hide

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"


def profile(name: str) -> EngineProfile:
    return parse_profile(json.loads((PROFILES / f"{name}.json").read_text()))


CLOCKS = (400.0, 600.0, 800.0, 1000.0)
ENGINE = Engine("test", "gpu", "stack", "model", 1, whole_batch=False)


def decoding(batch: int, seconds: float, clock: float = 1000.0) -> Row:
    return Row("decode", Batch(batch, 512.0 * batch), clock, Seconds(seconds), None, capped=False)


def reading(tokens: int, seconds: float) -> Row:
    batch = Batch(0, 0, tokens, tokens * tokens / 2.0)
    return Row("prefill", batch, 1000.0, Seconds(seconds), None, capped=False)


A100 = profile("a100-40g_llama-3.1-8b_tp1")


@pytest.mark.parametrize("name", ["a100-40g_llama-3.1-8b_tp1", "h100_llama-3.1-70b_tp4"])
def test_a_clean_sweep_gives_the_physics_back(name: str) -> None:
    engine = profile(name)
    sweep = emulated_sweep(
        engine, 400, np.random.default_rng(1), Blur(hidden=0.1, noise=0.0, power_noise=0.0)
    )
    latency, graphs = fit_latency(sweep.rows, float(engine.max_clock))
    free = [row for row in sweep.rows if not row.capped]
    work = work_of(free, float(engine.max_clock), graphs)
    seconds = iteration_seconds(latency, work)
    truth = np.array([row.seconds for row in free])
    assert np.abs(seconds / truth - 1.0).mean() < 0.005
    power = fit_power(free, work, seconds, latency, engine.power.p_idle_w)
    assert power is not None
    watts = watts_of(power, work, seconds)
    assert np.abs(watts / np.array([row.watts for row in free]) - 1.0).mean() < 0.01


def test_graph_padding_is_noticed_where_it_is_and_not_where_it_is_not() -> None:
    padded = emulated_sweep(A100, 500, np.random.default_rng(2), Blur(noise=0.002))
    assert fit_latency(padded.rows, 1410.0)[1] == VLLM_GRAPHS
    assert pad(np.array([0.0, 1.0, 9.0, 600.0]), VLLM_GRAPHS).tolist() == [0.0, 1.0, 16.0, 600.0]


def test_stalled_runs_do_not_bend_the_fit() -> None:
    sweep = emulated_sweep(A100, 300, np.random.default_rng(3), Blur(noise=0.01))
    rng = Random(4)
    stalled = tuple(
        Row(
            r.phase,
            r.batch,
            r.clock,
            type(r.seconds)(r.seconds * rng.choice([1.0] * 19 + [2.0])),
            r.watts,
            r.capped,
        )
        for r in sweep.rows
    )
    latency, graphs = fit_latency(stalled, 1410.0)
    work = work_of(sweep.rows, 1410.0, graphs)
    truth = np.array([row.true_seconds for row in sweep.rows])
    free = np.array([not row.capped for row in sweep.rows])
    assert np.abs(iteration_seconds(latency, work) / truth - 1.0)[free].mean() < 0.02


def test_trees_are_not_believed_where_physics_leaves_only_noise() -> None:
    rng = np.random.default_rng(5)
    sweep = emulated_sweep(A100, 300, np.random.default_rng(5), Blur())
    work = work_of(sweep.rows, 1410.0, VLLM_GRAPHS)
    truth = np.array([row.true_seconds for row in sweep.rows])
    noise = fit_residual(work, truth, truth * rng.lognormal(0.0, 0.03, len(truth)), rng)
    assert noise.share <= 0.25
    bent = truth * np.where(work.batch > 32.0, 1.2, 0.9)
    found = fit_residual(work, truth, bent * rng.lognormal(0.0, 0.03, len(truth)), rng)
    assert found.share >= 0.5
    left = np.log(bent / truth) - found.advice(work, truth)
    assert np.abs(left).mean() < 0.6 * np.abs(np.log(bent / truth)).mean()


def test_what_the_host_takes_for_a_prompt_is_told_apart_from_what_it_takes_for_every_iteration() -> None:
    rows = [decoding(batch, 5e-3 + 2e-4 * batch) for batch in (1, 2, 4, 8, 16, 32)]
    rows += [reading(tokens, 11e-3 + 4e-5 * tokens) for tokens in (128, 256, 512, 1024)]
    latency, _ = fit_latency(rows, 1000.0)
    assert 3e-3 < latency.prompt_s < 9e-3
    seconds = iteration_seconds(latency, work_of(rows, 1000.0, ()))
    assert np.abs(seconds / np.array([row.seconds for row in rows]) - 1.0).max() < 0.03


def test_a_load_that_is_unlike_the_physics_is_no_odd_row() -> None:
    rng = np.random.default_rng(8)
    work = work_of([decoding(batch, 1.0, clock) for batch in (1, 4, 16, 64) for clock in CLOCKS], 1000.0, ())
    physics = np.ones(16)
    truth = np.where(work.batch == 64.0, 1.3, 1.0)
    found = fit_residual(work, physics, truth * rng.lognormal(0.0, 0.01, 16), rng)
    assert np.abs(np.log(truth) - found.advice(work, physics)).max() < 0.05


def test_a_load_measured_faster_than_the_physics_is_served_as_it_was_measured() -> None:
    """As of a mixture of experts, where one sequence alone needs few of the weights."""
    seconds = {1: 0.014, 4: 0.019, 16: 0.0205, 64: 0.022}
    rows = tuple(
        decoding(batch, s * (0.8 + 200.0 / clock), clock) for batch, s in seconds.items() for clock in CLOCKS
    )
    model = train(Sweep(ENGINE, rows, None), [], np.random.default_rng(10)).model
    for row in rows:
        assert model.iteration_time(row.batch, row.clock) == pytest.approx(row.seconds, rel=0.03)


def test_an_engine_held_by_its_limit_at_nearly_every_clock_is_learned_as_it_is() -> None:
    seconds = {400.0: 0.020, 600.0: 0.015, 800.0: 0.0125, 1000.0: 0.0125}
    rows = tuple(replace(decoding(8, s, clock), capped=clock > 500.0) for clock, s in seconds.items())
    model = train(Sweep(ENGINE, rows, None), [], np.random.default_rng(9)).model
    for row in rows:
        assert model.iteration_time(row.batch, row.clock) == pytest.approx(row.seconds, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "r2", "mape"), [(0.9, 0.99, 2.0), (0.1, 0.97, 4.0)])
@pytest.mark.parametrize("name", ["a100-40g_llama-3.1-8b_tp1", "h100_llama-3.1-70b_tp2_shape-low"])
def test_hidden_plants_are_learned_from_noisy_rows(name: str, share: float, r2: float, mape: float) -> None:
    sweep = emulated_sweep(profile(name), 1000, np.random.default_rng(6), Blur())
    rng = np.random.default_rng(6)
    predictions, _ = predict(sweep, random_split(sweep, share, rng), rng)
    scores = score(predictions, 0)
    assert scores.r2 >= r2
    assert scores.mape_pct <= mape
    assert scores.power_mape_pct is not None
    assert scores.power_mape_pct <= mape
    assert 0.8 <= scores.coverage_p90 <= 1.0


def test_few_shot_learns_the_ends_and_predicts_the_middle() -> None:
    sweep = emulated_sweep(A100, 400, np.random.default_rng(7), Blur(clocks=9))
    (split,) = few_shot(sweep, 3)
    learned = sorted({row.clock for row in split.learn})
    assert len(learned) == 4
    assert learned[0] == min(row.clock for row in sweep.rows)
    assert learned[-1] == max(row.clock for row in sweep.rows)
    assert not {row.clock for row in split.test} & set(learned)
    assert len(split.learn) + len(split.test) == len(sweep.rows)


def test_every_clock_is_left_out_once() -> None:
    sweep = emulated_sweep(A100, 200, np.random.default_rng(8), Blur(clocks=5))
    left_out = [{row.clock for row in split.test} for split in leave_one_clock_out(sweep)]
    assert all(len(clocks) == 1 for clocks in left_out)
    assert len(left_out) == len({row.clock for row in sweep.rows})


def test_every_load_is_left_out_once() -> None:
    batches = (Batch(1, 500), Batch(1, 900), Batch(4, 2000), Batch(0, 0.0, 64, 2048.0))
    rows = tuple(
        Row("decode", batch, float(clock), Seconds(0.01), None, capped=False)
        for batch in batches
        for clock in (900, 1410)
    )
    splits = list(leave_one_load_out(Sweep(Engine("", "g", "", "m", 1, whole_batch=False), rows, None)))
    assert [len(split.test) for split in splits] == [2, 4, 2]
    assert all(len(split.learn) + len(split.test) == len(rows) for split in splits)
    assert {row.batch.context_tokens for row in splits[1].test} == {500, 900}


def test_an_engine_without_power_readings_is_learned_without_power() -> None:
    sweep = emulated_sweep(A100, 120, np.random.default_rng(9), Blur(clocks=4))
    bare = Sweep(
        sweep.engine,
        tuple(Row(r.phase, r.batch, r.clock, r.seconds, None, r.capped) for r in sweep.rows),
        None,
    )
    fitted = train(bare, (), np.random.default_rng(0))
    assert not fitted.model.trained.power_known
    assert fitted.model.watts(bare.rows[0].batch, 1410) == 0.0


def test_hidden_parameters_stay_within_their_share() -> None:
    hidden = hide(A100, np.random.default_rng(10), 0.1)
    assert hidden.latency.m0_s != A100.latency.m0_s
    assert hidden.latency.m0_s == pytest.approx(A100.latency.m0_s, rel=0.1)
    assert hidden.power.vmin < 1.0
    assert hidden.power.tdp_w == A100.power.tdp_w


def test_rows_of_published_sweeps_mean_what_they_say() -> None:
    head = "gpu,model,tp,phase,batch,context_tokens,new_tokens,freq_mhz,latency_ms,power_w,power_capped,flag"
    lines = [
        head,
        "G,M,1,decode,4,1000,0,900,20,150,0,",
        "G,M,1,prefill,2,0,512,900,50,200,1,",
        "G,M,1,prefill,1,512,0,900,50,200,0,",
        "G,M,1,mixed,4,1000,100,900,30,,0,",
        "G,M,1,batch_e2e,4,0,0,900,9000,150,0,",
        "G,M,1,decode,4,1000,0,600,20,150,0,noisy",
        "G,M,1,idle,0,0,0,900,0,55,0,",
    ]
    (iterations, batches), flagged = read_sweeps(lines, "x.csv")
    assert flagged == 1
    assert batches.engine == Engine("", "G", "", "M", 1, whole_batch=True)
    decode, prefill, prompt_as_context, mixed = iterations.rows
    assert (decode.batch.decoding, decode.batch.context_tokens) == (4, 4000.0)
    assert (prefill.batch.prefill_tokens, prefill.batch.prefill_attention) == (1024, 2 * 512 * 256.0)
    assert prefill.capped
    assert prompt_as_context.batch.prefill_tokens == 512
    assert (mixed.batch.decoding, mixed.batch.prefill_tokens, mixed.watts) == (4, 100, None)
    assert iterations.idle_watts == 55.0
    twice = merged([iterations, iterations])
    assert [len(sweep.rows) for sweep in twice] == [8]
