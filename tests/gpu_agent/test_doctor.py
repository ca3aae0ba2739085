"""What the doctor makes of a node."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost
from gpu_agent.device import Inventory
from gpu_agent.diagnosis import Facts, Level, Work, diagnose
from joulegate.units import MegaHertz, Watts

GPU = Inventory("GPU-0", 0, "H100", "", (MegaHertz(210), MegaHertz(1980)), (Watts(200.0), Watts(700.0)))
HEALTHY = Facts(
    driver_problem=None,
    driver_version="580.1",
    gpus=(GPU,),
    work={"GPU-0": Work(("vllm",), None)},
    idle_units=(),
    allow_writes=True,
    may_set_clocks=True,
    may_kill=True,
    has_pidfd=True,
    rivals=(),
    watchdog=None,
    state_problem=None,
    left_locked=frozenset(),
    agent_runs=True,
)


def test_a_healthy_node_has_nothing_to_mend() -> None:
    assert {finding.level for finding in diagnose(HEALTHY)} == {Level.OK}


@pytest.mark.parametrize(
    ("problem", "fix"),
    [
        pytest.param("NVIDIA GPUs need the Python package 'pynvml'", "pip install", id="package"),
        pytest.param("cannot open the plant /x", "joulegate emulate", id="emulated"),
        pytest.param("Driver Not Loaded", "nvidia-smi", id="driver"),
    ],
)
def test_a_driver_that_cannot_be_used_is_mended_where_it_is_broken(problem: str, fix: str) -> None:
    assert fix in diagnose(replace(HEALTHY, driver_problem=problem))[-1].fix


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        pytest.param(replace(HEALTHY, driver_problem="no library"), Level.FAILURE, "no library", id="driver"),
        pytest.param(replace(HEALTHY, may_set_clocks=False), Level.FAILURE, "no right", id="rights"),
        pytest.param(replace(HEALTHY, may_kill=False), Level.FAILURE, "hung agent", id="kill"),
        pytest.param(replace(HEALTHY, has_pidfd=False), Level.FAILURE, "pidfd", id="kernel"),
        pytest.param(replace(HEALTHY, watchdog="refused"), Level.FAILURE, "no watchdog", id="watchdog"),
        pytest.param(replace(HEALTHY, state_problem="full"), Level.FAILURE, "full", id="disk"),
        pytest.param(
            replace(HEALTHY, left_locked=frozenset({"GPU-0"}), agent_runs=False),
            Level.FAILURE,
            "left locked",
            id="left-over locks",
        ),
        pytest.param(replace(HEALTHY, allow_writes=False), Level.WARNING, "only watches", id="watching"),
        pytest.param(replace(HEALTHY, rivals=("nvidia-powerd",)), Level.WARNING, "nvidia-powerd", id="rival"),
        pytest.param(
            replace(HEALTHY, gpus=(replace(GPU, obstacle="MIG is on"),)), Level.WARNING, "MIG", id="MIG"
        ),
        pytest.param(
            replace(HEALTHY, gpus=(replace(GPU, persistence=False),)), Level.WARNING, "persistence", id="pm"
        ),
        pytest.param(
            replace(HEALTHY, gpus=(replace(GPU, cap_range=None),)), Level.WARNING, "no power cap", id="caps"
        ),
        pytest.param(
            replace(HEALTHY, work={"GPU-0": Work(("Xorg",), "foreign_process: 7 (Xorg)")}),
            Level.WARNING,
            "Xorg",
            id="foreign",
        ),
        pytest.param(
            replace(HEALTHY, work={"GPU-0": Work((), None, "GPU is lost")}),
            Level.FAILURE,
            "GPU is lost",
            id="lost",
        ),
        pytest.param(
            replace(HEALTHY, idle_units=("joulegate-agent.service",)),
            Level.WARNING,
            "joulegate-agent.service",
            id="units",
        ),
    ],
)
def test_each_trouble_is_named_and_stands_last(facts: Facts, level: Level, words: str) -> None:
    findings = diagnose(facts)
    assert findings[-1].level is level
    assert words in findings[-1].what


def test_what_can_be_mended_comes_with_the_command() -> None:
    troubled = replace(
        HEALTHY,
        gpus=(
            replace(GPU, obstacle="MIG is on: a clock lock holds for the whole GPU", persistence=False),
            replace(GPU, uuid="GPU-1", obstacle="the GPU is virtual: its host sets the clocks"),
        ),
        may_set_clocks=False,
        rivals=("nvidia-powerd",),
        idle_units=("joulegate-watchdog.service",),
    )
    fixes = " ".join(finding.fix for finding in diagnose(troubled) if finding.level is not Level.OK)
    for words in ("-mig 0", "on the host", "-pm 1", "CAP_SYS_ADMIN", "disable --now", "enable --now"):
        assert words in fixes


def test_where_no_systemd_runs_no_units_are_missed() -> None:
    assert not [f for f in diagnose(replace(HEALTHY, idle_units=None)) if "boot" in f.what]


def run(*options: str) -> tuple[int, list[dict[str, str]]]:
    result = subprocess.run(
        [sys.executable, "-m", "joulegate", "doctor", "--agent", "--json", *options],
        capture_output=True,
        check=False,
    )
    return result.returncode, json.loads(result.stdout)


def test_on_a_real_node_before_and_after_the_watchdog_starts(tmp_path: Path) -> None:
    host = AgentHost(tmp_path / "node", 2, {})
    options = ("-c", str(host.folder / "agent.yaml"))
    try:
        status, before = run(*options)
        assert status == 1
        assert any("no watchdog" in finding["what"] and finding["fix"] for finding in before)
        host.plant.gpus[0].processes = [os.getpid()]
        host.start_watchdog()
        host.wait_for(lambda: "watchdog ready" in host.logged(), "watchdog")
        status, after = run(*options)
        assert not [finding for finding in after if finding["level"] == "failure"]
        said = " ".join(finding["what"] for finding in after)
        assert f"GPU-0: in use by {Path('/proc/self/comm').read_text().strip()}" in said
        assert "clocks 210-1980 MHz" in said
        assert "power cap 200-700 W" in said
        assert status == 0
        assert host.lock_writes() == 0
    finally:
        host.stop()


def test_a_rival_is_recognised_by_its_name(tmp_path: Path) -> None:
    rival = tmp_path / "nvidia-pstated"
    shutil.copy("/bin/sleep", rival)
    host = AgentHost(tmp_path / "node", 1, {"allow_writes": False})
    process = subprocess.Popen([rival, "60"], env=dict(os.environ))
    try:
        _, findings = run("-c", str(host.folder / "agent.yaml"))
    finally:
        process.kill()
        process.wait()
        host.stop()
    assert [f["fix"] for f in findings if "nvidia-pstated" in f["what"]] == [
        "systemctl disable --now nvidia-pstated"
    ]
