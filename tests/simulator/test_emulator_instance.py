"""The engine in real time keeps the timeline that simulated time has."""

import asyncio
import random
import time
from pathlib import Path

import orjson
import pytest

from gpu_agent.plant import GpuSpec, Plant
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds, Watts
from simulator.costs import EngineCosts
from simulator.emulator_instance import LiveEngine, LiveJob
from simulator.engine import Engine
from simulator.jobs import Job
from tests.simulator.conftest import PROFILES

PROFILE = parse_profile(orjson.loads((PROFILES / "h100_llama-3.1-8b_tp1.json").read_bytes()))


class Tokens:
    """A sink that counts; the third token sets `begun`, the last one `ended`."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def token(self, count: int, last: bool) -> None:
        self.counts.append(count)
        if count == 3:
            self.begun.set()
        if last:
            self.ended.set()


def hold_the_loop(seconds: float) -> None:
    """As a host does that is late."""
    time.sleep(seconds)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant.create(tmp_path / "plant", [GpuSpec("GPU-0", PROFILE.clocks)])


async def test_live_tokens_come_when_simulated_time_says(plant: Plant) -> None:
    started, rng = time.monotonic(), random.Random(5)
    before = plant.gpus[0].true_energy_at(Seconds(started))
    live = LiveEngine(PROFILE, plant.gpus, None, asyncio.get_running_loop())
    jobs: list[LiveJob] = []
    sinks: list[Tokens] = []
    for _ in range(40):
        sinks.append(Tokens())
        jobs.append(live.submit(rng.randint(1, 3000), rng.randint(1, 40), sinks[-1]))
        if rng.random() < 0.2:
            hold_the_loop(0.03)
        await asyncio.sleep(rng.choice([0.0, 0.002, 0.05]))
    await asyncio.gather(*(sink.ended.wait() for sink in sinks))

    offline = Engine(EngineCosts(PROFILE), PROFILE.max_clock, started)
    twins = [Job(job.key, job.prompt_tokens, job.output_tokens) for job in jobs]
    for twin, job in zip(twins, jobs, strict=True):
        offline.submit(twin, job.submitted_at)
    offline.advance(time.monotonic())
    for twin, job, sink in zip(twins, jobs, sinks, strict=True):
        assert job.first_token_at == pytest.approx(twin.first_token_at, abs=1e-9)
        assert job.finished_at == pytest.approx(twin.finished_at, abs=1e-9)
        assert sink.counts == list(range(1, job.output_tokens + 1))
    spent = plant.gpus[0].true_energy_at(Seconds(offline.now)) - before
    assert spent == pytest.approx(offline.energy, rel=1e-3)  # the two began some microseconds apart


async def test_a_clock_from_the_plant_acts_on_the_next_iteration(plant: Plant) -> None:
    gpu = plant.gpus[0]
    live = LiveEngine(PROFILE, plant.gpus, None, asyncio.get_running_loop())
    fast, slow = Tokens(), Tokens()
    first = live.submit(10, 20, fast)
    await fast.ended.wait()
    gpu.lock(MegaHertz(510), MegaHertz(510), Seconds(time.monotonic()))
    await asyncio.sleep(0.03)  # it settles
    second = live.submit(10, 20, slow)
    await slow.ended.wait()
    lasted = [job.finished_at - job.first_token_at for job in (first, second)]
    assert lasted[1] > 1.2 * lasted[0]


async def test_a_board_under_a_power_cap_slows_down_until_it_keeps_it(plant: Plant) -> None:
    gpu = plant.gpus[0]
    live = LiveEngine(PROFILE, plant.gpus, None, asyncio.get_running_loop())
    lasted, drawn = [], []
    for cap in (PROFILE.power.tdp_w, 0.45 * PROFILE.power.tdp_w):
        gpu.cap = Watts(cap)
        sinks = [Tokens() for _ in range(32)]
        jobs = [live.submit(10, 60, sink) for sink in sinks]
        await asyncio.gather(*(sink.begun.wait() for sink in sinks))
        drawn.append(gpu.watts_at(Seconds(time.monotonic())))
        await asyncio.gather(*(sink.ended.wait() for sink in sinks))
        lasted.append(jobs[0].finished_at - jobs[0].first_token_at)
    assert drawn[1] <= 0.45 * PROFILE.power.tdp_w < drawn[0]
    assert lasted[1] > lasted[0]


async def test_a_sleeping_engine_draws_idle_power_and_goes_on_where_it_stopped(plant: Plant) -> None:
    live = LiveEngine(PROFILE, plant.gpus, None, asyncio.get_running_loop())
    running, held = Tokens(), Tokens()
    live.submit(10, 30, running)
    await running.begun.wait()
    live.sleep()
    await asyncio.sleep(0.05)
    done, now = len(running.counts), Seconds(time.monotonic())
    assert plant.gpus[0].watts_at(now) == PROFILE.power.p_idle_w
    live.submit(10, 1, held)
    await asyncio.sleep(0.05)
    assert (len(running.counts), held.counts, live.waiting) == (done, [], 0)
    live.wake()
    await asyncio.gather(running.ended.wait(), held.ended.wait())
    assert running.counts == list(range(1, 31))
