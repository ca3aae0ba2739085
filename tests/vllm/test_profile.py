"""A real vLLM is swept and learned as an operator would. How well is measured where nothing else runs."""

import csv
import json
import subprocess
from pathlib import Path

import pytest

from tests.vllm.servers import JOULEGATE, MODEL, Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
LOADS = (
    "--batches",
    "1,2,4,8",
    "--contexts",
    "128,512",
    "--prompts",
    "128,512",
    "--window",
    "0.5",
    "--repeats",
    "3",
)


def joulegate(*words: str) -> str:
    done = subprocess.run([JOULEGATE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_at_its_one_speed_is_learned(engines: tuple[Server, Server], tmp_path: Path) -> None:
    sweep, model = tmp_path / "vllm.csv", tmp_path / "vllm.npz"
    joulegate("profile", "--url", engines[0].url, "--fixed-clock", "--out", str(sweep), *LOADS)
    with sweep.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 + 2
    assert {row["model"] for row in rows} == {MODEL}
    usable = [row for row in rows if not row["flag"]]
    assert len(usable) >= 8
    assert all(0.0 < float(row["latency_ms"]) < 5000.0 for row in usable)
    told = joulegate("evaluate", "latency", "--data", str(sweep), "--leave-one-load-out", "--json")
    scores = json.loads(told)
    assert scores["n"] == len(usable)
    assert scores["monotone_violations"] == 0
    assert scores["power_mape_pct"] is None, "nobody read its power"
    assert MODEL in joulegate("train", "latency", "--data", str(sweep), "--out", str(model))
    assert model.exists()
