import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from joulegate.arrivals import Arrival
from simulator.children import free_ports
from simulator.loadgen import Sender, Target, finish, play
from simulator.replay_report import Engine
from tests.simulator.conftest import MODEL, RunningFleet, fleet_yaml, running

HEADER = "timestamp_s,input_tokens,output_tokens\n"
ROWS = [(0.0, 40, 5), (0.1, 300, 60), (0.15, 1500, 20), (0.2, 10, 1), (0.2, 90, 30)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "".join(f"{at},{inputs},{outputs}\n" for at, inputs, outputs in ROWS))
    return path


def replay(trace: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from joulegate.cli import main; main()",
        "replay",
        str(trace),
        "--url",
        url,
    ]
    clean = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False, env=clean)


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("engine", ["emulated", "vllm"])
def test_every_answer_is_whole_and_exact(fleet: RunningFleet, trace: Path, engine: str) -> None:
    result = report(replay(trace, fleet.urls["large"], "--engine", engine, "--json"))
    counts = {name: result[name] for name in ("requests", "errors", "lost", "doubled", "usage_mismatches")}
    assert counts == {"requests": 5, "errors": 0, "lost": 0, "doubled": 0, "usage_mismatches": 0}
    assert result["output_tokens"] == sum(outputs for _, _, outputs in ROWS)
    if engine == "emulated":
        assert result["input_tokens"] == sum(inputs for _, inputs, _ in ROWS)
    assert set(result["attainment_pct"]) == {"S", "M", "L", "all"}
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert 0 < result[name]["p50"] <= result[name]["p99"]


def test_the_window_options_choose_and_clip(fleet: RunningFleet, trace: Path) -> None:
    options = ["--from", "0.05", "--limit", "2", "--clip-output", "7", "--clip-input", "100", "--speed", "2"]
    result = report(replay(trace, fleet.urls["large"], *options, "--json"))
    assert (result["requests"], result["output_tokens"], result["input_tokens"]) == (2, 14, 200)


def test_refusals_are_errors_and_misses(fleet: RunningFleet, tmp_path: Path) -> None:
    crowd = tmp_path / "crowd.csv"
    crowd.write_text(HEADER + "0.0,40,100\n" * 8)
    result = report(replay(crowd, fleet.urls["small"], "--json"))
    assert result["error_kinds"] == {"status 503": 5}
    assert result["attainment_pct"]["all"] == pytest.approx(100 * 3 / 8, abs=26)


def test_the_report_for_a_person_says_how_lengths_were_set(fleet: RunningFleet, trace: Path) -> None:
    done = replay(trace, fleet.urls["large"], "--engine", "vllm")
    assert "use_max_tokens: false" in done.stdout
    assert "attainment" in done.stdout


def test_nobody_there_is_one_error_line(trace: Path) -> None:
    done = replay(trace, f"http://127.0.0.1:{free_ports(1)[0]}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


async def test_two_targets_get_the_same_arrivals_and_a_dead_one_is_told(tmp_path: Path) -> None:
    arrivals = [Arrival(0.01 * index, 50, 200) for index in range(20)]
    with running(fleet_yaml(tmp_path)) as fleet:
        dead = f"http://127.0.0.1:{free_ports(1)[0]}"
        senders = [
            Sender(Target(url, MODEL, Engine.EMULATED))
            for url in (fleet.urls["large"], fleet.urls["small"], dead)
        ]
        lateness = await play(arrivals, senders, lambda elapsed: None)
        await finish(senders, 30.0, lambda elapsed: None)
    assert lateness.count == 20
    assert [sender.tally.sent for sender in senders] == [20, 20, 20]
    assert [sender.tally.errors for sender in senders] == [0, 0, 20]
    assert all("cannot connect" in answer.error for answer in senders[2].tally.answers)


async def test_an_engine_that_dies_loses_its_requests_loudly(tmp_path: Path) -> None:
    arrivals = [Arrival(0.0, 50, 3000) for _ in range(4)]
    with running(fleet_yaml(tmp_path)) as fleet:
        sender = Sender(Target(fleet.urls["large"], MODEL, Engine.EMULATED))
        await play(arrivals, [sender], lambda elapsed: None)

        def kill(elapsed: float) -> None:
            if elapsed > 0.3:
                fleet.process.terminate()

        await finish([sender], 30.0, kill)
    assert [answer.error for answer in sender.tally.answers] == ["connection closed"] * 4
