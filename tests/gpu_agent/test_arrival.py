"""How long a clock takes to arrive, against a plant that settles when it is told to."""

from pathlib import Path

import pytest

from gpu_agent.arrival import EVERY, GIVE_UP, KEEP, Arrivals, looked, watched
from gpu_agent.plant import GpuSpec, Plant
from joulegate.units import Joules, MegaHertz, Seconds, Watts
from joulegate.wire import SyncRequest
from tests.gpu_agent.conftest import CLOCKS, Bench

SETTLE = Seconds(0.037)
TOLERANCE = MegaHertz(30)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    spec = GpuSpec(uuid="GPU-0", clocks=CLOCKS, settle=SETTLE)
    return Bench(tmp_path / "plant", Plant.create(tmp_path / "plant", [spec]))


def busy(bench: Bench) -> None:
    gpu, now = bench.gpu(0), bench.clock()
    gpu.publish(now, Joules(0.0), Watts(600.0), MegaHertz(1980))


def lower(bench: Bench, clock: int, step: float = 0.002) -> tuple[float | None, int]:
    """Lower to `clock` and look every `step`: (what the agent says it took, how often it looked)."""
    node = bench.node()
    request = SyncRequest(holder="gw", targets={"GPU-0": clock}, ttl_s=30.0)
    node.sync(request, "test", bench.clock())
    looks = 1
    while node.look():
        bench.clock.advance(step)
        looks += 1
    return node.states()[0].actuation_s, looks


def test_it_is_the_settling_time_to_within_a_look(bench: Bench) -> None:
    busy(bench)
    took, _ = lower(bench, 900)
    assert took is not None
    assert SETTLE <= took <= SETTLE + 0.0021


def test_an_idle_gpu_shows_nothing_so_nothing_is_claimed(bench: Bench) -> None:
    bench.gpu(0).publish(bench.clock(), Joules(0.0), Watts(70.0), MegaHertz(345))
    assert lower(bench, 900) == (None, 1)


def test_a_clock_that_never_arrives_is_given_up(bench: Bench) -> None:
    busy(bench)
    bench.gpu(0).stick(MegaHertz(1980))
    took, looks = lower(bench, 900, step=0.1)
    assert took is None
    assert looks <= GIVE_UP / 0.1 + 3


def test_not_every_lowering_is_measured(bench: Bench) -> None:
    busy(bench)
    node = bench.node()
    measured = 0
    lease = None
    for second in range(25):
        targets: dict[str, int | None] = {"GPU-0": 1800 - 60 * second}
        answer = node.sync(
            SyncRequest(holder="gw", lease=lease, targets=targets, ttl_s=30.0), "test", bench.clock()
        )
        lease = getattr(answer, "token", None)
        measured += node.look()
        bench.clock.advance(0.5)
        node.look()
        bench.clock.advance(0.6)
    assert measured == 25 * 1.1 // EVERY + 1


def test_the_slowest_of_the_last_counts_and_old_ones_are_forgotten() -> None:
    arrivals, now = Arrivals(), 0.0
    for took in [0.5, *[0.01] * (KEEP - 1)]:
        arrivals = watched(arrivals, MegaHertz(1980), MegaHertz(900), TOLERANCE, Seconds(now))
        arrivals = looked(arrivals, MegaHertz(920), TOLERANCE, Seconds(now + took))
        now += 20.0
    assert arrivals.slowest == pytest.approx(0.5)
    arrivals = watched(arrivals, MegaHertz(1980), MegaHertz(900), TOLERANCE, Seconds(now))
    arrivals = looked(arrivals, MegaHertz(900), TOLERANCE, Seconds(now + 0.02))
    assert len(arrivals.took) == KEEP
    assert arrivals.slowest == pytest.approx(0.02)


def test_a_raise_ends_what_was_being_measured() -> None:
    on_its_way = watched(Arrivals(), MegaHertz(1980), MegaHertz(900), TOLERANCE, Seconds(0.0))
    assert on_its_way.watch is not None
    assert watched(on_its_way, MegaHertz(1980), None, TOLERANCE, Seconds(0.1)).watch is None


def test_a_step_within_the_tolerance_is_not_measured() -> None:
    assert watched(Arrivals(), MegaHertz(1500), MegaHertz(1485), TOLERANCE, Seconds(0.0)).watch is None
