"""The emulator as a process: GPUs shared by an instance, what stops it from starting, how it stops."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_agent.plant import Plant
from joulegate.units import MegaHertz, Seconds
from simulator.children import free_ports
from tests.simulator.conftest import MODEL, PROFILES, running

EMULATE = [sys.executable, "-c", "from joulegate.cli import main; main()", "emulate", "-c"]


def pair(folder: Path, **changes: Any) -> Path:
    """One 70B instance over two GPUs."""
    profile = str(PROFILES / "h100_llama-3.1-70b_tp2.json")
    instance = {
        "name": "pair",
        "port": free_ports(1)[0],
        "model": MODEL,
        "profile": profile,
        "gpus": ["node-1/0", "node-1/1"],
    }
    document = {
        "version": 1,
        "perturb": False,
        "noise_pct": 0,
        "nodes": [{"name": "node-1", "plant": str(folder / "plant"), "gpus": 2, "profile": profile}],
        "instances": [instance | changes],
    }
    path = folder / "fleet.yaml"
    path.write_text(json.dumps(document))
    return path


def test_the_slowest_gpu_of_an_instance_counts_and_each_draws_its_share(tmp_path: Path) -> None:
    with running(pair(tmp_path)) as fleet, httpx.Client(base_url=fleet.urls["pair"], timeout=20) as http:
        gpus = Plant.open(fleet.plant).gpus
        body = {"prompt": "x", "max_tokens": 40, "ignore_eos": True, "stream": True}

        def busy_watts() -> tuple[float, float, int]:
            with http.stream("POST", "/v1/completions", json=body) as response:
                parts = response.iter_bytes()
                next(parts)
                now = Seconds(time.monotonic())
                seen = (gpus[0].watts_at(now), gpus[1].watts_at(now), gpus[0].sm_clock_at(now))
                for _ in parts:
                    pass
            return seen

        first, second, clock = busy_watts()
        assert first == second > 300
        assert clock == 1980
        gpus[1].lock(MegaHertz(510), MegaHertz(510), Seconds(time.monotonic()))
        time.sleep(0.1)  # the clock settles
        lower, also_lower, clock = busy_watts()
        assert lower == also_lower < first
        assert clock == 510
        stats = http.get("/emulator/stats").json()
        assert stats["gpu_joules"]["GPU-node-1-0"] == pytest.approx(
            stats["gpu_joules"]["GPU-node-1-1"], rel=0.01
        )


def test_an_idle_gpu_draws_idle_power_and_says_so(tmp_path: Path) -> None:
    with running(pair(tmp_path)) as fleet:
        gpu, now = Plant.open(fleet.plant).gpus[0], Seconds(time.monotonic())
        assert gpu.watts_at(now) == 70.0
        assert gpu.reasons_at(now) == 1
        assert gpu.processes == (fleet.process.pid,)
        assert gpu.true_energy_at(Seconds(now + 10)) == pytest.approx(gpu.true_energy_at(now) + 700)


def test_when_the_emulator_ends_nobody_is_on_its_gpus(tmp_path: Path) -> None:
    with running(pair(tmp_path)) as fleet, httpx.Client(base_url=fleet.urls["pair"], timeout=20) as http:
        gpu = Plant.open(fleet.plant).gpus[0]
        body = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            parts = response.iter_raw()
            next(parts)
            before = Seconds(time.monotonic())
            spent = gpu.true_energy_at(before)
            assert gpu.watts_at(before) > 300
            fleet.process.terminate()
            assert fleet.process.wait(10) == 0
    now = Seconds(time.monotonic())
    assert gpu.watts_at(now) == 60.0, "a GPU with nobody on it rests deeper than an idle engine's"
    assert gpu.processes == ()
    assert gpu.true_energy_at(now) >= spent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"gpus": ["node-1/0"]}, "needs 2", id="too few GPUs"),
        pytest.param({"profile": __file__}, "cannot read the engine profile", id="no profile"),
    ],
)
def test_a_fleet_that_cannot_be_is_one_error_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    done = subprocess.run(
        [*EMULATE, str(pair(tmp_path, **changes))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named_and_the_plant_of_who_has_it_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plant").write_text("of another emulator")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*EMULATE, str(pair(tmp_path, port=port))], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert (tmp_path / "plant").read_text() == "of another emulator"
