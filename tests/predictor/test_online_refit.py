"""A refit learns the engine as it is now, also where traffic has not been since it changed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds, Watts
from predictor.latency_artifact import load
from predictor.latency_data import Engine, Row, read_sweeps
from predictor.online import Correction, CorrectionSettings
from predictor.online_refit import Reach, as_csv, remembered, rows_of
from predictor.online_samples import Sample
from predictor.physics import PhysicsModel
from predictor.sweep_emulated import Blur, emulated_sweep
from predictor.table import TableModel

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"
ENGINE = parse_profile(json.loads(PROFILE.read_text()))
PLANT = PhysicsModel(ENGINE)
REACH = Reach(64, 100_000.0, 2048)
SLOWER = 1.2

pytestmark = pytest.mark.timeout(400)  # the child runs at the lowest priority, beside whatever else runs


def refitted(folder: Path, rows: Sequence[Row]) -> TableModel:
    """As the gateway has it done: in a child process, over files."""
    data, out = folder / "samples.csv", folder / "model.npz"
    data.write_text(as_csv(Engine("gateway", "g", "vllm", "m", 1, whole_batch=False), rows))
    words = [sys.executable, "-m", "predictor.refit_child", str(data), str(out), *map(str, ENGINE.clocks)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = load(out)
    return model


def test_a_slower_engine_is_learned_where_it_was_seen_and_where_it_was_not(tmp_path: Path) -> None:
    correction = Correction(PLANT.clocks, CorrectionSettings())
    seen = []
    for step in range(120):
        batch = Batch(1 + step % 8, 500.0 * (1 + step % 8))
        truth = Seconds(SLOWER * PLANT.iteration_time(batch, 1410))
        correction.observe(PLANT.iteration_time(batch, 1410), truth, 1410)
        seen.append(Sample(batch, 1410.0, truth, Watts(180.0), Seconds(step)))
    model = refitted(tmp_path, [*remembered(PLANT, correction, REACH, seen), *rows_of(seen)])
    assert model.clocks == ENGINE.clocks
    assert model.idle_watts == PLANT.idle_watts
    prompt = Batch(0, 0.0, 1000, 500_000.0)
    for batch, clock in ((Batch(4, 2000.0), 1410), (Batch(64, 60_000.0), 900), (prompt, 1200)):
        truth = Seconds(SLOWER * PLANT.iteration_time(batch, clock))
        assert model.iteration_time(batch, clock) == pytest.approx(truth, rel=0.05)


def test_an_engine_that_changed_its_shape_is_learned_where_it_was_seen(tmp_path: Path) -> None:
    """Twice as slow with each sequence: no factor says that."""

    def truth(batch: Batch, clock: int) -> Seconds:
        more = Batch(batch.decoding, 3.0 * batch.context_tokens)
        return PLANT.iteration_time(more, clock)

    correction = Correction(PLANT.clocks, CorrectionSettings())
    seen = []
    for step in range(400):
        batch, clock = Batch(2 << step % 5, 1500.0 * (2 << step % 5)), (1410, 1200, 1005)[step % 3]
        correction.observe(PLANT.iteration_time(batch, clock), truth(batch, clock), clock)
        seen.append(Sample(batch, float(clock), truth(batch, clock), Watts(180.0), Seconds(step)))
    model = refitted(tmp_path, [*remembered(PLANT, correction, REACH, seen), *rows_of(seen)])
    for size in (2, 8, 32):
        batch = Batch(size, 1500.0 * size)
        assert model.iteration_time(batch, 1200) == pytest.approx(truth(batch, 1200), rel=0.06)


def test_a_child_that_cannot_learn_says_why_in_one_line(tmp_path: Path) -> None:
    data = tmp_path / "samples.csv"
    data.write_text(as_csv(Engine("gateway", "g", "vllm", "m", 1, whole_batch=False), []))
    words = [sys.executable, "-m", "predictor.refit_child", str(data), str(tmp_path / "model.npz"), "1410"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "no usable rows in the data\n"


def test_what_was_not_swept_is_not_remembered() -> None:
    correction = Correction(PLANT.clocks, CorrectionSettings())
    rows = remembered(PLANT, correction, Reach(4, 3000.0, 0), [])
    assert {row.phase for row in rows} == {"idle", "decode"}
    assert max(row.batch.context_tokens for row in rows) <= 3000.0
    assert max(row.batch.decoding for row in rows) == 4


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
