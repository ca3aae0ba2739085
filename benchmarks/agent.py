"""Shell: what the agent costs: eight GPUs synced and read ten times a second, over the fake NVML library.

The library serves a plant file and answers in microseconds, where a driver takes up to milliseconds: the
figures are the agent's own cost, not the driver's. Ceilings move once a second, as often as dwell allows.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.agent_host import AgentHost
from benchmarks.lease_holder import UnixConnection, call

ROOT = Path(__file__).parents[1]
GPUS = 8
HERTZ = 10.0
CLOCKS = (900, 1200)


def build_library(folder: Path) -> None:
    """The fake libnvidia-ml.so.1."""
    source = ROOT / "tests" / "fakes" / "nvml" / "nvml.c"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libnvidia-ml.so.1"), str(source), "-lm"]
    subprocess.run(command, check=True)


def drive(host: AgentHost, seconds: float) -> list[float]:
    """Sync at HERTZ for so long: seconds each took."""
    connection = UnixConnection(str(host.folder / "agent.sock"), 10.0)
    lease: object = None
    took = []
    start = time.monotonic()
    for tick in range(int(seconds * HERTZ)):
        time.sleep(max(0.0, start + tick / HERTZ - time.monotonic()))
        targets = dict.fromkeys(host.uuids, CLOCKS[int(tick / HERTZ) % len(CLOCKS)])
        message = {"holder": "bench", "lease": lease, "ttl_s": 2.0, "targets": targets, "reason": "cost"}
        before = time.perf_counter()
        status, reply = call(connection, "/v1/sync", message)
        took.append(time.perf_counter() - before)
        if status == 200:
            lease = reply["lease"]
    connection.close()
    return took


def measure(host: AgentHost, seconds: float) -> dict[str, float]:
    assert host.agent is not None
    assert host.watchdog is not None
    agent, watchdog = psutil.Process(host.agent.pid), psutil.Process(host.watchdog.pid)
    drive(host, 3.0)  # warm: imports, the first lease, agent and watchdog have met
    time.sleep(2.5)  # the lease of the warm-up runs out
    writes, began = host.lock_writes(), time.monotonic()
    cpu, watchdog_cpu = _cpu(agent), _cpu(watchdog)
    took = drive(host, seconds)
    wall = time.monotonic() - began
    return {
        "cpu_pct": round(100.0 * (_cpu(agent) - cpu) / wall, 2),
        "rss_mb": round(agent.memory_info().rss / 1e6, 1),
        "sync_ms_p50": round(1000.0 * statistics.median(took), 2),
        "sync_ms_p99": round(1000.0 * statistics.quantiles(took, n=100)[98], 2),
        "watchdog_cpu_pct": round(100.0 * (_cpu(watchdog) - watchdog_cpu) / wall, 2),
        "watchdog_rss_mb": round(watchdog.memory_info().rss / 1e6, 1),
        "syncs": len(took),
        "clock_writes": host.lock_writes() - writes,
    }


def _cpu(process: psutil.Process) -> float:
    """Seconds its threads have run, to the nanosecond: clock ticks miss what runs between them."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def run(seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="joulegate-agent-") as name:
        folder = Path(name)
        build_library(folder)
        host = AgentHost(folder / "node", GPUS, {"device": {"kind": "nvml"}})
        environment = {"LD_LIBRARY_PATH": str(folder), "JOULEGATE_PLANT": str(host.plant_file)}
        try:
            host.start_watchdog(environment)
            host.start_agent(environment=environment)
            host.wait_ready()
            return measure(host, seconds)
        finally:
            host.stop()


def show(figures: dict[str, float], words: Sequence[tuple[str, str]]) -> None:
    for key, about in words:
        sys.stdout.write(f"{key:<18}{figures[key]:>10}   {about}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the agent costs for eight GPUs at 10 Hz.")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = run(options.seconds)
    show(
        figures,
        [
            ("cpu_pct", "of one core, agent (fake NVML library)"),
            ("rss_mb", "agent"),
            ("sync_ms_p50", "one POST /v1/sync, as its client sees it"),
            ("sync_ms_p99", ""),
            ("watchdog_cpu_pct", "of one core"),
            ("watchdog_rss_mb", ""),
            ("clock_writes", f"in {figures['syncs']:.0f} syncs"),
        ],
    )
    if options.json:
        options.json.write_text(json.dumps(figures | {"library": "fake", "gpus": GPUS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
