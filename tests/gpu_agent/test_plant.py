"""The plant is what several processes agree on: what one writes, another reads, whole."""

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.plant import GpuSpec, Plant
from gpu_agent.plant_layout import Call, NvmlReturn
from joulegate.errors import UserError
from joulegate.units import Joules, MegaHertz, Seconds, Watts

CLOCKS = tuple(MegaHertz(c) for c in range(210, 1981, 15))
TOP = CLOCKS[-1]


def spec(index: int = 0) -> GpuSpec:
    return GpuSpec(uuid=f"GPU-{index}", pci=f"00000000:0{index}:00.0", clocks=CLOCKS, settle=Seconds(0.05))


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant.create(tmp_path / "node", [spec(0), spec(1)])


def test_a_lock_takes_effect_after_the_settling_lag(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(100.0 + time.monotonic())
    assert gpu.clock_at(now) == TOP
    gpu.lock(CLOCKS[0], MegaHertz(1200), now)
    assert gpu.clock_at(now) == TOP
    assert gpu.clock_at(Seconds(now + 0.049)) == TOP
    assert gpu.clock_at(Seconds(now + 0.051)) == 1200
    gpu.reset(Seconds(now + 1.0))
    assert gpu.clock_at(Seconds(now + 1.01)) == 1200
    assert gpu.clock_at(Seconds(now + 1.06)) == TOP
    assert gpu.request.high is None
    assert gpu.request.count == 2


def test_a_request_that_interrupts_another_starts_from_the_clock_in_effect(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(100.0 + time.monotonic())
    gpu.lock(CLOCKS[0], MegaHertz(600), now)
    gpu.lock(CLOCKS[0], MegaHertz(1500), Seconds(now + 0.01))
    assert gpu.clock_at(Seconds(now + 0.02)) == TOP
    assert gpu.clock_at(Seconds(now + 0.07)) == 1500


def test_gpus_do_not_touch_each_other(plant: Plant) -> None:
    now = Seconds(100.0 + time.monotonic())
    plant.gpus[0].lock(CLOCKS[0], MegaHertz(600), now)
    plant.gpus[0].lose()
    assert plant.gpus[1].request.count == 0
    assert plant.gpus[1].error(Call.CLOCK) == NvmlReturn.SUCCESS
    assert plant.gpus[0].error(Call.CLOCK) == NvmlReturn.GPU_IS_LOST


@given(pieces=st.lists(st.tuples(st.floats(0.001, 30.0), st.floats(50.0, 700.0)), min_size=1, max_size=20))
def test_energy_is_continuous_and_sums_the_power(
    pieces: list[tuple[float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    gpu = Plant.create(tmp_path_factory.mktemp("plant") / "node", [spec()]).gpus[0]
    now = Seconds(time.monotonic())
    start = truth = gpu.true_energy_at(now)
    for seconds, watts in pieces:
        gpu.publish(now, Joules(truth), Watts(watts), TOP)
        assert gpu.energy_at(now) == pytest.approx(truth, abs=1e-6)
        now, truth = Seconds(now + seconds), Joules(truth + seconds * watts)
        assert gpu.energy_at(now) == pytest.approx(truth, abs=1e-6)
    assert truth - start == pytest.approx(sum(s * w for s, w in pieces))


def test_temperature_follows_power_with_a_lag(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(time.monotonic())
    cold = gpu.temperature_at(now)
    gpu.publish(now, Joules(0.0), Watts(700.0), TOP)
    readings = [gpu.temperature_at(Seconds(now + s)) for s in (0.0, 5.0, 20.0, 1000.0)]
    assert readings[0] == pytest.approx(cold)
    assert readings == sorted(readings)
    assert readings[-1] == pytest.approx(30.0 + 0.07 * 700.0)


def test_a_stuck_clock_accepts_the_lock_and_ignores_it(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(100.0 + time.monotonic())
    gpu.stick(TOP)
    gpu.lock(CLOCKS[0], MegaHertz(600), now)
    assert gpu.request.high == 600
    assert gpu.sm_clock_at(Seconds(now + 1.0)) == TOP
    gpu.heal()
    assert gpu.sm_clock_at(Seconds(now + 1.0)) == 600


def test_a_throttling_gpu_runs_below_its_ceiling_and_says_why(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(time.monotonic())
    gpu.throttle(MegaHertz(900), reasons=0x20)
    assert gpu.clock_at(now) == 900
    assert gpu.reasons_at(now) == 0x20


def test_a_driver_reload_frees_the_clocks_and_zeroes_the_counter(plant: Plant) -> None:
    gpu, now = plant.gpus[0], Seconds(time.monotonic())
    gpu.publish(now, Joules(5000.0), Watts(100.0), TOP)
    gpu.lock(CLOCKS[0], MegaHertz(600), now)
    plant.reload_driver(Seconds(now + 10.0))
    assert plant.generation == 1
    assert gpu.request.high is None
    assert gpu.energy_at(Seconds(now + 10.0)) == pytest.approx(0.0, abs=1e-6)
    assert gpu.true_energy_at(Seconds(now + 10.0)) == pytest.approx(6000.0)


def write_for_ever(path: Path) -> None:
    gpu = Plant.open(path).gpus[0]
    i = 0
    while True:
        i += 1
        at = Seconds(float(i))
        gpu.publish(at, Joules(float(i)), Watts(float(i)), MegaHertz(i % 1000))
        gpu.lock(MegaHertz(i % 1000), MegaHertz(i % 1000 + 1), at)


def test_readers_never_see_half_a_record_and_outlive_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "node"
    gpu = Plant.create(path, [spec()]).gpus[0]
    writer = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(path,))
    writer.start()
    try:
        while gpu.request.count < 100:
            time.sleep(0.001)
        for _ in range(20_000):
            request = gpu.request
            assert request.high == request.low + 1
        assert gpu.request.count > 1000
    finally:
        writer.kill()
        writer.join()
    assert gpu.request.high == gpu.request.low + 1
    now = Seconds(time.monotonic() + 1e9)
    assert float(gpu.watts_at(now)) == float(gpu.true_energy_at(Seconds(0.0)))


def test_another_process_sees_the_same_gpus(plant: Plant, tmp_path: Path) -> None:
    now = Seconds(time.monotonic())
    plant.gpus[1].processes = [7, 8]
    plant.gpus[1].cap = Watts(350.0)
    plant.gpus[1].lock(CLOCKS[0], MegaHertz(600), now)
    other = Plant.open(tmp_path / "node")
    assert [g.uuid for g in other.gpus] == ["GPU-0", "GPU-1"]
    assert other.gpus[1].clocks == CLOCKS
    assert other.gpus[1].processes == (7, 8)
    assert other.gpus[1].cap == 350.0
    assert other.gpus[1].request == plant.gpus[1].request


@pytest.mark.parametrize("content", [None, b"", b"something else" * 1000])
def test_opening_what_is_no_plant_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "node"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="plant"):
        Plant.open(path)
