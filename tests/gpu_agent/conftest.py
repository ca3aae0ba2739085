"""A node of emulated GPUs on a clock the test turns, and the same as real processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpu_agent.ceilings import limits_for
from gpu_agent.emulated import EmulatedDriver
from gpu_agent.lease import Grace
from gpu_agent.managed import ManagedGpu, Policy
from gpu_agent.node import Node
from gpu_agent.plant import GpuSpec, Plant, PlantGpu
from gpu_agent.state_file import StateFile
from joulegate.units import MegaHertz, Seconds

CLOCKS = tuple(MegaHertz(c) for c in range(210, 1981, 15))
JITTER, GRACE = Seconds(0.4), Seconds(0.2)


@dataclass
class ManualClock:
    now: Seconds = Seconds(1_000_000.0)

    def __call__(self) -> Seconds:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now = Seconds(self.now + seconds)


@dataclass
class StandingWatchdog:
    """Confirms what it is told, unless it is away; remembers the last word."""

    problem: str = ""
    deadline: Seconds | None = None
    gpus: frozenset[str] = frozenset()
    holds_driver: bool = True
    arms: int = 0

    def arm(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool = True) -> bool:
        self.arms += 1
        if self.problem:
            return False
        self.deadline, self.gpus, self.holds_driver = deadline, frozenset(gpus), hold
        return True

    def renew(self, deadline: Seconds, gpus: Iterable[str]) -> bool:
        return not self.problem and self.arm(deadline, gpus)

    def disarm(self) -> None:
        self.deadline, self.gpus = None, frozenset()

    def gone(self) -> bool:
        return bool(self.problem)

    def close(self) -> None:
        pass


@dataclass
class Bench:
    """A node and everything around it that a test may turn."""

    path: Path
    plant: Plant
    clock: ManualClock = field(default_factory=ManualClock)
    watchdog: StandingWatchdog = field(default_factory=StandingWatchdog)
    rng: Callable[[], float] = lambda: 0.5

    def gpu(self, index: int) -> PlantGpu:
        return self.plant.gpus[index]

    def ceilings(self) -> list[int | None]:
        """What is locked on each GPU, as the driver has it."""
        return [gpu.request.high for gpu in self.plant.gpus]

    def node(
        self,
        allow_writes: bool = True,
        site_lock: int | None = None,
        own_processes: frozenset[str] = frozenset(),
    ) -> Node:
        driver = EmulatedDriver(self.path, self.clock)
        driver.open()
        policy = Policy(allow_writes, MegaHertz(30), Seconds(0.1), Seconds(30.0), own_processes)
        gpus = [
            ManagedGpu(
                driver,
                info,
                limits_for(info.clocks, 300, 1900, site_lock, Seconds(1.0)),
                policy,
                self.clock,
            )
            for info in driver.inventory()
        ]
        memory = StateFile(self.path.parent) if allow_writes else None
        return Node(driver, gpus, self.watchdog, memory, Grace(JITTER, GRACE), self.rng, self.clock)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    specs = [GpuSpec(uuid=f"GPU-{i}", clocks=CLOCKS, settle=Seconds(0.01)) for i in range(4)]
    return Bench(tmp_path / "plant", Plant.create(tmp_path / "plant", specs))
