"""The NVML driver, through the unmodified pynvml and a C library that serves the plant.

The library is in a process of its own, since the loader reads LD_LIBRARY_PATH only at start.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agent_host import AgentHost, end
from gpu_agent.device import DeviceError
from gpu_agent.emulated import EmulatedDriver
from gpu_agent.plant import GpuSpec, Plant
from gpu_agent.plant_layout import Call, NvmlReturn
from joulegate.units import Joules, MegaHertz, Seconds, Watts

CLOCKS = tuple(MegaHertz(c) for c in range(210, 1981, 15))
ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "fakes" / "nvml"


def now() -> Seconds:
    return Seconds(time.monotonic())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the fake libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run(["gcc", *flags, "-o", target, str(FAKE / "nvml.c"), "-lm"], check=True)
    return folder


class Refused(Exception):
    """The driver in the other process raised a DeviceError of this name."""


class PipedDriver:
    """Calls NvmlDriver in another process."""

    def __init__(self, library: Path, plant: Path) -> None:
        environment = {
            "LD_LIBRARY_PATH": str(library),
            "JOULEGATE_PLANT": str(plant),
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(FAKE / "driver_pipe.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def call(self, *words: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    specs = [
        GpuSpec(uuid="GPU-a", pci="00000000:17:00.0", clocks=CLOCKS, settle=Seconds(0.0)),
        GpuSpec(uuid="GPU-b", pci="00000000:65:00.0", clocks=CLOCKS, settle=Seconds(3600.0)),
        GpuSpec(uuid="GPU-mig", clocks=CLOCKS, mig=True),
        GpuSpec(uuid="GPU-vm", clocks=CLOCKS, vgpu=True),
        GpuSpec(uuid="GPU-old", clocks=CLOCKS, compute=(6, 0)),
    ]
    return Plant.create(tmp_path / "plant", specs)


@pytest.fixture
def driver(plant: Plant, library: Path, tmp_path: Path) -> Iterator[PipedDriver]:
    piped = PipedDriver(library, tmp_path / "plant")
    piped.call("open")
    yield piped
    piped.close()


def test_it_lists_what_the_emulated_driver_lists(plant: Plant, driver: PipedDriver, tmp_path: Path) -> None:
    emulated = EmulatedDriver(tmp_path / "plant", now)
    emulated.open()
    for seen, meant in zip(driver.call("inventory"), emulated.inventory(), strict=True):
        assert seen["uuid"] == meant.uuid
        assert seen["pci"] == meant.pci
        assert tuple(seen["clocks"]) == meant.clocks
        assert tuple(seen["cap_range"]) == meant.cap_range
        assert seen["obstacle"] == meant.obstacle
    assert [gpu["obstacle"] is None for gpu in driver.call("inventory")] == [True, True, False, False, False]


def test_it_reads_what_the_emulated_driver_reads(plant: Plant, driver: PipedDriver, tmp_path: Path) -> None:
    gpu = plant.gpus[0]
    gpu.publish(now(), Joules(1234.5), Watts(321.5), MegaHertz(1500), reasons=0x4)
    gpu.processes = [11, 12]
    gpu.throttle(MegaHertz(1410), reasons=0x20)
    emulated = EmulatedDriver(tmp_path / "plant", now)
    emulated.open()
    before, seen, after = emulated.read("GPU-a"), driver.call("read", "GPU-a"), emulated.read("GPU-a")
    assert seen["clock"] == before.clock == 1410
    assert seen["watts"] == before.watts
    assert seen["reasons"] == ["power_cap", "thermal"] == list(before.reasons)
    assert seen["processes"] == [11, 12]
    assert before.counter is not None
    assert after.counter is not None
    assert before.counter - 0.001 <= seen["counter"] <= after.counter + 0.001
    assert seen["celsius"] == pytest.approx(before.celsius, abs=0.6)


def test_a_lock_is_a_lock_a_reset_a_reset_a_cap_a_cap(plant: Plant, driver: PipedDriver) -> None:
    driver.call("lock", "GPU-a", 210, 900)
    assert (plant.gpus[0].request.low, plant.gpus[0].request.high) == (210, 900)
    assert driver.call("read", "GPU-a")["clock"] == 900
    driver.call("reset", "GPU-a")
    assert plant.gpus[0].request.high is None
    assert driver.call("read", "GPU-a")["clock"] == 1980
    driver.call("set_cap", "GPU-a", 350.0)
    assert driver.call("cap", "GPU-a") == plant.gpus[0].cap == 350.0
    with pytest.raises(Refused):
        driver.call("set_cap", "GPU-a", 10.0)


def test_a_clock_that_has_not_settled_still_reads_as_before(plant: Plant, driver: PipedDriver) -> None:
    driver.call("lock", "GPU-b", 210, 900)
    assert driver.call("read", "GPU-b")["clock"] == 1980


@pytest.mark.parametrize(
    ("code", "name"),
    [
        pytest.param(NvmlReturn.NO_PERMISSION, "Denied", id="permission"),
        pytest.param(NvmlReturn.NOT_SUPPORTED, "Unsupported", id="unsupported"),
        pytest.param(NvmlReturn.GPU_IS_LOST, "Lost", id="lost"),
        pytest.param(NvmlReturn.UNKNOWN, "Broken", id="unknown error"),
        pytest.param(NvmlReturn.TIMEOUT, "Failed", id="anything else"),
    ],
)
def test_errors_mean_the_same_as_on_the_emulated_driver(
    plant: Plant, driver: PipedDriver, tmp_path: Path, code: int, name: str
) -> None:
    emulated = EmulatedDriver(tmp_path / "plant", now)
    emulated.open()
    plant.gpus[0].fail(Call.LOCK, code)
    with pytest.raises(Refused, match=name):
        driver.call("lock", "GPU-a", 210, 900)
    with pytest.raises(DeviceError) as raised:
        emulated.lock("GPU-a", CLOCKS[0], MegaHertz(900))
    assert type(raised.value).__name__ == name
    assert plant.gpus[0].request.count == 0


def test_one_lost_gpu_leaves_the_others(plant: Plant, driver: PipedDriver) -> None:
    plant.gpus[0].lose()
    with pytest.raises(Refused, match="Lost"):
        driver.call("read", "GPU-a")
    driver.call("lock", "GPU-mig", 210, 900)
    driver.call("open")
    assert [gpu["uuid"] for gpu in driver.call("inventory")] == ["GPU-b", "GPU-mig", "GPU-vm", "GPU-old"]


def test_after_a_driver_reload_calls_fail_until_it_is_opened_again(plant: Plant, driver: PipedDriver) -> None:
    driver.call("lock", "GPU-a", 210, 900)
    plant.reload_driver(now())
    with pytest.raises(Refused, match="Broken"):
        driver.call("read", "GPU-a")
    driver.call("open")
    assert driver.call("read", "GPU-a")["clock"] == 1980
    assert driver.call("read", "GPU-a")["counter"] < 60.0 * 70.0


def test_a_gpu_without_a_counter_or_a_thermometer_is_still_read(plant: Plant, driver: PipedDriver) -> None:
    for call in (Call.ENERGY, Call.TEMPERATURE, Call.REASONS, Call.PROCESSES):
        plant.gpus[0].fail(call, NvmlReturn.NOT_SUPPORTED)
    reading = driver.call("read", "GPU-a")
    assert reading["counter"] is None
    assert (reading["watts"], reading["celsius"], reading["reasons"]) == (70.0, 0.0, [])


def test_closed_is_closed(driver: PipedDriver) -> None:
    driver.call("close")
    with pytest.raises(Refused, match="Broken"):
        driver.call("read", "GPU-a")
    driver.call("open")
    assert driver.call("read", "GPU-a")["clock"] == 1980


@pytest.fixture
def host(tmp_path: Path, library: Path) -> Iterator[AgentHost]:
    """A node of two GPUs: agent and watchdog over the fake library, both ready."""
    host = AgentHost(tmp_path / "node", 2, {"device": {"kind": "nvml"}})
    environment = {"LD_LIBRARY_PATH": str(library), "JOULEGATE_PLANT": str(host.plant_file)}
    try:
        host.start_watchdog(environment)
        host.start_agent(environment=environment)
        host.wait_ready()
        yield host
    finally:
        host.stop()


def hold(host: AgentHost, targets: dict[str, int | None], expected: list[int | None]) -> None:
    """Lower until it is so: leases and watchdog may need a moment."""
    lease: object = None

    def held() -> bool:
        nonlocal lease
        try:
            message: dict[str, object] = {"holder": "test", "lease": lease, "ttl_s": 2.0, "targets": targets}
            status, reply = host.post("/v1/sync", message)
        except OSError:
            return False  # it starts again
        lease = reply.get("lease") if status == 200 else None
        return host.ceilings() == expected

    host.wait_for(held, "lock")


def faults(host: AgentHost) -> list[object]:
    return [gpu["fault"] for gpu in host.get("/v1/gpus")[1]["gpus"]]  # type: ignore[attr-defined]


def test_the_whole_agent_over_nvml_gives_clocks_back_when_killed(host: AgentHost) -> None:
    hold(host, {"GPU-0": 900, "GPU-1": 1200}, [900, 1200])
    end(host.agent, signal.SIGKILL)
    host.wait_for(lambda: host.ceilings() == [None, None], "restored clocks", 20.0)


@pytest.mark.parametrize("trouble", ["unknown error", "driver reload"])
def test_the_agent_opens_a_broken_library_again(host: AgentHost, trouble: str) -> None:
    hold(host, {"GPU-0": 900, "GPU-1": 1200}, [900, 1200])
    if trouble == "driver reload":
        host.plant.reload_driver(now())
    else:
        host.plant.break_handles()
    # asking makes the agent read; the first answers may still be from before
    host.wait_for(
        lambda: faults(host) == [None, None] and "opening the driver again" in host.logged(), "reading again"
    )
    hold(host, {"GPU-0": 1005, "GPU-1": 1200}, [1005, 1200])


def test_a_gpu_that_falls_off_the_bus_does_not_stop_the_other(host: AgentHost) -> None:
    hold(host, {"GPU-0": 900, "GPU-1": 1200}, [900, 1200])
    host.plant.gpus[0].lose()
    hold(host, {"GPU-1": 1005}, [900, 1005])
    broken, sound = faults(host)
    assert broken is not None
    assert sound is None
    host.plant.gpus[0].heal()  # as after a reset of the GPU: it is still locked, and freed with the lease
    host.wait_for(lambda: host.ceilings() == [None, None], "restored clocks", 20.0)


def uses_the_library(pid: int, plant: Path) -> bool:
    """Whether NVML is initialised there: the fake keeps its plant mapped until it is shut down."""
    return str(plant) in Path(f"/proc/{pid}/maps").read_text()


def test_release_lets_a_driver_upgrade_through_and_resume_takes_up_the_new_one(host: AgentHost) -> None:
    assert host.agent is not None
    assert host.watchdog is not None
    pids, plant = (host.agent.pid, host.watchdog.pid), host.plant_file
    hold(host, {"GPU-0": 900, "GPU-1": 1200}, [900, 1200])
    assert all(uses_the_library(pid, plant) for pid in pids)
    assert host.post("/v1/release", {"holder": "operator"})[1]["released"] is True
    assert host.ceilings() == [None, None]
    host.wait_for(lambda: not any(uses_the_library(pid, plant) for pid in pids), "end of the old library")
    host.plant.upgrade_driver(now())
    status, reply = host.post("/v1/release", {"holder": "operator", "resume": True})
    assert status == 503
    assert "starts again" in str(reply["help"])
    hold(host, {"GPU-0": 900, "GPU-1": 1200}, [900, 1200])
    assert (host.agent.pid, host.watchdog.pid) == pids
    assert host.agent.poll() is None
    assert host.watchdog.poll() is None


def test_without_a_library_the_agent_says_so(tmp_path: Path) -> None:
    host = AgentHost(tmp_path / "node", 1, {"device": {"kind": "nvml"}})
    try:
        host.start_agent(environment={"LD_LIBRARY_PATH": str(tmp_path)})
        assert host.agent is not None
        assert host.agent.wait(timeout=30) == 2
        assert "error: the driver cannot be opened" in host.logged()
        assert "Traceback" not in host.logged()
    finally:
        host.stop()
