"""A refit learns the engine as it is now, also where traffic has not been since it changed."""

import json
from pathlib import Path

import numpy as np
import pytest

from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds, Watts
from predictor.latency_data import read_sweeps
from predictor.latency_train import train
from predictor.online import Correction, CorrectionSettings
from predictor.online_refit import as_csv, moved, rows_of
from predictor.online_samples import Sample
from predictor.physics import PhysicsModel
from predictor.sweep_emulated import Blur, emulated_sweep

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"
ENGINE = parse_profile(json.loads(PROFILE.read_text()))
SLOWER = 1.2


def test_a_slower_engine_is_learned_where_it_was_seen_and_where_it_was_not() -> None:
    plant = PhysicsModel(ENGINE)
    swept = emulated_sweep(ENGINE, 150, np.random.default_rng(1), Blur(hidden=0.0, noise=0.01, clocks=6))
    correction = Correction(plant.clocks, CorrectionSettings())
    seen = []
    for step in range(120):
        batch = Batch(1 + step % 8, 500.0 * (1 + step % 8))
        truth = Seconds(SLOWER * plant.iteration_time(batch, 1410))
        correction.observe(plant.iteration_time(batch, 1410), truth, 1410)
        seen.append(Sample(batch, 1410.0, truth, Watts(180.0), Seconds(step)))
    rows = [*moved(swept.rows, correction), *rows_of(seen)]
    (sweep,), flagged = read_sweeps(as_csv(swept.engine, rows).splitlines(), "fresh")
    assert flagged == 0
    assert len(sweep.rows) == len(rows)
    model = train(sweep, ENGINE.clocks, np.random.default_rng(0)).model
    for batch, clock in ((Batch(4, 2000.0), 1410), (Batch(64, 60_000.0), 900), (Batch(16, 16_000.0), 1410)):
        truth = Seconds(SLOWER * plant.iteration_time(batch, clock))
        assert model.iteration_time(batch, clock) == pytest.approx(truth, rel=0.05)


def test_rows_survive_the_file() -> None:
    swept = emulated_sweep(ENGINE, 60, np.random.default_rng(2), Blur())
    (sweep,), _ = read_sweeps(as_csv(swept.engine, swept.rows).splitlines(), "x")
    for before, after in zip(swept.rows, sweep.rows, strict=True):
        assert after.batch.decoding == before.batch.decoding
        assert after.batch.context_tokens == pytest.approx(before.batch.context_tokens)
        assert after.batch.prefill_tokens == before.batch.prefill_tokens
        assert (after.phase, after.clock, after.capped) == (before.phase, before.clock, before.capped)
        assert after.seconds == pytest.approx(before.seconds)


def test_a_window_without_work_is_no_row() -> None:
    assert rows_of([Sample(Batch(), 1410.0, Seconds(0.1), None, Seconds(0.0))]) == []
