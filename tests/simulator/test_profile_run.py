"""`joulegate profile` against an emulated engine, its GPU and its agent, all live."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz
from predictor.latency_data import COLUMNS, OPTIONAL
from predictor.physics import PhysicsModel
from predictor.sweep import Point
from simulator.children import Child, free_ports, joulegate
from simulator.profile_file import Subject, append, done

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"
READY = 30.0
pytestmark = pytest.mark.timeout(400)
SMALL = ("--clocks", "2", "--batches", "1,4", "--contexts", "256", "--prompts", "256", "--window", "0.6")


@dataclass(frozen=True)
class Bench:
    url: str
    agent: Path

    def ceiling(self) -> int | None:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.agent))) as http:
            ceiling: int | None = http.get("http://agent/v1/gpus").json()["gpus"][0]["ceiling_mhz"]
            return ceiling


def spawn(folder: Path, *words: str) -> Child:
    child = Child(joulegate(*words), folder / f"{words[0]}.log", folder)
    child.start()
    return child


def listens(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def wait_for(address: tuple[str, int] | str) -> None:
    end = time.monotonic() + READY
    while not listens(address):
        assert time.monotonic() < end, f"{address} never listened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("bench")
    (free_port,) = free_ports(1)
    plant = str(folder / "plant")
    engine = {"name": "a", "port": free_port, "model": "m", "profile": str(PROFILE), "gpus": ["n/0"]}
    fleet = {
        "version": 1,
        "perturb": False,
        "noise_pct": 0,
        "nodes": [{"name": "n", "plant": plant, "gpus": 1, "profile": str(PROFILE)}],
        "instances": [engine],
    }
    agent = {
        "version": 1,
        "node": "n",
        "device": {"kind": "emulated", "plant": plant},
        "allow_writes": True,
        "listen": {"unix": str(folder / "agent.sock")},
        "watchdog": {"socket": str(folder / "watchdog.sock")},
        "state_dir": str(folder / "state"),
    }
    (folder / "fleet.yaml").write_text(json.dumps(fleet))
    (folder / "agent.yaml").write_text(json.dumps(agent))
    found = Bench(f"http://127.0.0.1:{free_port}", folder / "agent.sock")
    processes = [spawn(folder, "emulate", "-c", "fleet.yaml")]
    try:
        wait_for(("127.0.0.1", free_port))
        processes.append(spawn(folder, "agent", "-c", "agent.yaml", "--with-watchdog"))
        wait_for(str(found.agent))
        yield found
    finally:
        for process in reversed(processes):
            process.stop()


def sweep(bench: Bench, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "joulegate", "profile", "--url", bench.url, "--out", str(out)]
    return subprocess.Popen([*words, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_measures_what_the_engine_is(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    run = sweep(bench, out, "--agent", f"unix:{bench.agent}", *SMALL, "--repeats", "3", "--json")
    printed, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    truth = PhysicsModel(parse_profile(json.loads(PROFILE.read_text())))
    decodes = [row for row in rows(out) if row["phase"] == "decode" and not row["flag"]]
    assert {row["freq_mhz"] for row in decodes} == {"705", "1410"}
    for row in decodes:
        batch = Batch(int(row["batch"]), 256.0 * int(row["batch"]))
        clock = MegaHertz(int(row["freq_mhz"]))
        seconds, watts = truth.iteration_time(batch, clock), truth.watts(batch, clock)
        # what a client sees is never much faster than the engine; on a busy host it is slower, and late
        assert 0.8 < float(row["latency_ms"]) / (1e3 * seconds) < 1.6
        assert 0.7 < float(row["power_w"]) / watts < 1.15
        assert 0.0 <= float(row["latency_se_ms"]) < float(row["latency_ms"])
    prompts = [row for row in rows(out) if row["phase"] == "prefill"]
    assert len(prompts) == 2
    for row in prompts:  # a busy host sees prompts late, and then takes waiting for work
        work = truth.watts(Batch(0, 0.0, 256, 256 * 128.0), MegaHertz(int(row["freq_mhz"])))
        assert 0.4 * work < float(row["power_w"]) < 1.2 * work
    curves = json.loads(printed)
    assert {curve["phase"] for curve in curves} == {"decode", "prefill"}
    assert bench.ceiling() is None


def test_a_sweep_that_is_interrupted_gives_the_clock_back_and_goes_on(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    arguments = ("--agent", f"unix:{bench.agent}", *SMALL)
    first = sweep(bench, out, *arguments)
    end = time.monotonic() + 200.0
    while not out.exists() or len(rows(out)) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=30)
    assert first.returncode == 130
    assert bench.ceiling() is None
    before = rows(out)
    second = sweep(bench, out, *arguments)
    assert "batch 4 x 256" in second.communicate(timeout=300)[0]
    assert rows(out)[: len(before)] == before
    assert len(rows(out)) == 1 + 2 * 3


def test_the_plan_alone_touches_nothing(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    run = sweep(bench, out, "--agent", f"unix:{bench.agent}", *SMALL, "--plan")
    assert "6 points at 2 clocks" in run.communicate(timeout=300)[1]
    assert not out.exists()


def test_one_speed_engines_are_swept_without_an_agent(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "sweep.csv"
    run = sweep(bench, out, "--fixed-clock", *SMALL)
    printed, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert "no curve" in printed
    assert {(row["freq_mhz"], row["latency_se_ms"]) for row in rows(out)} == {("1", "")}


def test_a_file_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    out, subject = tmp_path / "sweep.csv", Subject("A100", "vLLM", "m", 1)
    point, other = (Point("decode", batch, 256, 0, MegaHertz(900)) for batch in (1, 2))
    before = [column for column in COLUMNS if column not in OPTIONAL]
    out.write_text(",".join(before) + "\nprofile,A100,vLLM,m,1,decode,1,256,0,900,10,,0,,\n")
    assert done(out, subject) == {point.key}
    append(out, subject, other, 12.0, None, latency_se_ms="0.5", flag="")
    assert done(out, subject) == {point.key, other.key}
    assert [row["latency_ms"] for row in rows(out)] == ["10", "12"]
    assert "latency_se_ms" not in rows(out)[1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        pytest.param((), "--agent and --fixed-clock", id="neither"),
        pytest.param(("--agent", "unix:/nowhere.sock"), "is it running", id="no agent"),
        pytest.param(("--fixed-clock", "--batches", "one"), "whole numbers", id="not a number"),
    ],
)
def test_what_cannot_be_swept_is_said(
    bench: Bench, tmp_path: Path, more: tuple[str, ...], complaint: str
) -> None:
    run = sweep(bench, tmp_path / "sweep.csv", *more)
    _, said = run.communicate(timeout=300)
    assert run.returncode == 2
    assert complaint in said
    assert "Traceback" not in said
