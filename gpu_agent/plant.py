"""Shell: the GPUs of one emulated node, as a memory-mapped file that several processes share.

Who writes what (one writer per part, so nothing needs a lock):

    spec        `Plant.create`, once
    request     whoever sets clocks: the agent, or its watchdog after it has killed the agent
    cap         the same
    work        the emulated engine: energy, power, clock it runs at
    processes   the emulated engine
    faults      a test

`request` and `work` are read as a whole. Each has two slots and a version whose lowest bit names the valid
one: a writer fills the other slot and then adds one. A writer that is killed half-way leaves the old value
standing, where a seqlock would leave its readers spinning.

Times are seconds of CLOCK_MONOTONIC (`time.monotonic()`), so every process on the machine agrees on them.
tests/fakes/nvml/nvml.c serves the same bytes as libnvidia-ml.so.1; its structs repeat the ones here.
"""

import ctypes
import math
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_agent import plant_layout as layout
from gpu_agent.plant_layout import BLOCK, MAGIC, MAX_CLOCKS, Call, NvmlReturn
from joulegate.errors import UserError
from joulegate.units import Joules, MegaHertz, Seconds, Watts


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """What is fixed about one emulated GPU. The thermal model is T' = (ambient + k*W - T)/tau."""

    uuid: str
    clocks: tuple[MegaHertz, ...]  # ascending
    name: str = "Emulated H100"
    pci: str = ""
    settle: Seconds = Seconds(0.02)  # from a clock request to its effect
    idle_watts: Watts = Watts(70.0)
    cap_watts: tuple[Watts, Watts, Watts] = (Watts(200.0), Watts(700.0), Watts(700.0))  # low, default, high
    ambient_celsius: float = 30.0
    kelvin_per_watt: float = 0.07
    thermal_seconds: float = 20.0
    compute: tuple[int, int] = (9, 0)
    mig: bool = False
    vgpu: bool = False
    persistence: bool = True


@dataclass(frozen=True, slots=True)
class ClockRequest:
    """The lock asked for last: (low, high) MHz, or high None when the driver's default holds."""

    low: MegaHertz
    high: MegaHertz | None
    at: Seconds
    pid: int
    count: int  # how many requests there have been


class PlantGpu:
    """One GPU of the plant. Reads are consistent; every method is a few microseconds."""

    def __init__(self, raw: layout.Gpu) -> None:
        self._raw = raw
        spec = raw.spec
        self.uuid = spec.uuid.decode()
        self.pci = spec.pci.decode()
        self.name = spec.name.decode()
        self.clocks = tuple(MegaHertz(c) for c in spec.clocks[: spec.clock_count])
        self.idle_watts = Watts(spec.idle_watts)
        self.cap_watts = (Watts(spec.cap_low), Watts(spec.cap_default), Watts(spec.cap_high))
        self.compute = (spec.compute_major, spec.compute_minor)
        self.mig, self.vgpu, self.persistence = bool(spec.mig), bool(spec.vgpu), bool(spec.persistence)

    def clock_at(self, now: Seconds) -> MegaHertz:
        """The clock ceiling in effect at `now`, settling lag and self-throttling included."""
        faults = self._raw.faults
        if faults.stuck:
            return MegaHertz(faults.stuck)
        request = self._request()
        settled = now >= request.at + self._raw.spec.settle
        ceiling = (request.high or self.clocks[-1]) if settled else request.previous
        return MegaHertz(min(ceiling, faults.throttle) if faults.throttle else ceiling)

    def lock(self, low: MegaHertz, high: MegaHertz, now: Seconds) -> None:
        self._ask(low, high, now)

    def reset(self, now: Seconds) -> None:
        self._ask(0, 0, now)

    @property
    def request(self) -> ClockRequest:
        raw = self._request()
        high = MegaHertz(raw.high) if raw.high else None
        return ClockRequest(MegaHertz(raw.low), high, Seconds(raw.at), raw.pid, self._raw.request_version)

    def publish(
        self, now: Seconds, energy_joules: Joules, watts: Watts, clock: MegaHertz, reasons: int = 0
    ) -> None:
        """From `now` on the GPU draws `watts` at `clock`; it has used `energy_joules` in all."""
        raw, temperature = self._raw, self.temperature_at(now)
        slot = raw.work[(raw.work_version + 1) & 1]
        slot.energy, slot.at, slot.watts = energy_joules, now, watts
        slot.temperature, slot.clock, slot.reasons = temperature, clock, reasons
        raw.work_version += 1

    def true_energy_at(self, now: Seconds) -> Joules:
        """Joules since the plant began; faults do not touch it."""
        work = self._work()
        return Joules(work.energy + work.watts * max(0.0, now - work.at))

    def energy_at(self, now: Seconds) -> Joules:
        """What the driver's counter says: joules since the driver was loaded."""
        return Joules(self.true_energy_at(now) - self._raw.faults.energy_offset)

    def watts_at(self, now: Seconds) -> Watts:
        return Watts(self._work().watts)

    def temperature_at(self, now: Seconds) -> float:
        """Celsius."""
        work, spec = self._work(), self._raw.spec
        final = spec.ambient + spec.kelvin_per_watt * work.watts
        left = math.exp(-max(0.0, now - work.at) / spec.thermal_seconds)
        return final + (work.temperature - final) * left

    def sm_clock_at(self, now: Seconds) -> MegaHertz:
        """The SM clock a reader sees: what the engine runs at, never above the ceiling in effect."""
        ceiling = self.clock_at(now)
        return ceiling if self._raw.faults.stuck else MegaHertz(min(self._work().clock, ceiling))

    def reasons_at(self, now: Seconds) -> int:
        """NVML clock-event reasons as a bit mask."""
        return self._work().reasons | self._raw.faults.reasons

    @property
    def processes(self) -> tuple[int, ...]:
        return tuple(self._raw.pids[: self._raw.pid_count])

    @processes.setter
    def processes(self, pids: Sequence[int]) -> None:
        for i, pid in enumerate(pids):
            self._raw.pids[i] = pid
        self._raw.pid_count = len(pids)

    @property
    def cap(self) -> Watts:
        """The power limit set now."""
        return Watts(self._raw.cap)

    @cap.setter
    def cap(self, watts: Watts) -> None:
        self._raw.cap = watts

    # Faults, for tests.

    def fail(self, call: Call, code: int = NvmlReturn.UNKNOWN) -> None:
        """Every such call answers `code` until told otherwise (0)."""
        self._raw.faults.errors[call] = code

    def deny_writes(self) -> None:
        for call in (Call.LOCK, Call.RESET, Call.CAP):
            self.fail(call, NvmlReturn.NO_PERMISSION)

    def lose(self) -> None:
        """The GPU has fallen off the bus."""
        self.fail(Call.ANY, NvmlReturn.GPU_IS_LOST)

    def stick(self, clock: MegaHertz | None) -> None:
        """Locks are accepted and change nothing: the GPU runs at `clock`."""
        self._raw.faults.stuck = clock or 0

    def throttle(self, clock: MegaHertz | None, reasons: int = 0) -> None:
        """The GPU holds itself down to `clock` and gives `reasons`."""
        self._raw.faults.throttle = clock or 0
        self._raw.faults.reasons = reasons

    def slow_writes(self, seconds: Seconds) -> None:
        self._raw.faults.call_seconds = seconds

    def heal(self) -> None:
        offset = self._raw.faults.energy_offset
        ctypes.memset(ctypes.addressof(self._raw.faults), 0, ctypes.sizeof(layout.Faults))
        self._raw.faults.energy_offset = offset

    def error(self, call: Call) -> int:
        """The NVML return code this call gives now."""
        errors = self._raw.faults.errors
        return errors[Call.ANY] or errors[call]

    @property
    def write_seconds(self) -> float:
        return self._raw.faults.call_seconds

    def zero_counter(self, now: Seconds) -> None:
        """The driver was reloaded: its energy counter starts again at nothing."""
        self._raw.faults.energy_offset = self.true_energy_at(now)

    def _ask(self, low: int, high: int, now: Seconds) -> None:
        raw, ceiling = self._raw, self._ceiling_in_effect(now)
        # Agent and watchdog may both free a GPU at start: two that begin at one version end at the next.
        version = raw.request_version + 1
        slot = raw.request[version & 1]
        slot.at, slot.low, slot.high = now, low, high
        slot.previous, slot.pid = ceiling, os.getpid()
        raw.request_version = version

    def _ceiling_in_effect(self, now: Seconds) -> int:
        request = self._request()
        settled = now >= request.at + self._raw.spec.settle
        return (request.high or self.clocks[-1]) if settled else request.previous

    def _request(self) -> layout.Request:
        raw = self._raw
        while True:
            version = raw.request_version
            copy = layout.Request.from_buffer_copy(raw.request[version & 1])
            if raw.request_version == version:
                return copy

    def _work(self) -> layout.Work:
        raw = self._raw
        while True:
            version = raw.work_version
            copy = layout.Work.from_buffer_copy(raw.work[version & 1])
            if raw.work_version == version:
                return copy


class Plant:
    """An open plant file. The mapping lives as long as this object and its GPUs."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._header = layout.Header.from_buffer(memory)
        count = self._header.gpus
        self.gpus = tuple(PlantGpu(layout.Gpu.from_buffer(memory, BLOCK * (1 + i))) for i in range(count))

    @classmethod
    def create(cls, path: Path, specs: Sequence[GpuSpec]) -> "Plant":
        """Write a new plant at `path`, replacing what was there."""
        size = BLOCK * (1 + len(specs))
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(bytes(size))
        memory = _map(fresh, size)
        for i, spec in enumerate(specs):
            _describe(layout.Gpu.from_buffer(memory, BLOCK * (1 + i)), spec, Seconds(time.monotonic()))
        header = layout.Header.from_buffer(memory)
        header.magic, header.gpus, header.block = MAGIC, len(specs), BLOCK
        fresh.replace(path)
        return cls(memory)

    @classmethod
    def open(cls, path: Path) -> "Plant":
        """Raises UserError when `path` is no plant."""
        try:
            size = path.stat().st_size
            memory = _map(path, size)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot open the plant {path}: {error}", "start the emulator first") from error
        header = layout.Header.from_buffer_copy(memory[: ctypes.sizeof(layout.Header)])
        if header.magic != MAGIC or header.block != BLOCK or size < BLOCK * (1 + header.gpus):
            raise UserError(
                f"{path} is not a plant of this version", "delete it and start the emulator again"
            )
        return cls(memory)

    @property
    def generation(self) -> int:
        """How often the driver was reloaded: handles of an earlier generation are dead."""
        return self._header.generation

    def reload_driver(self, now: Seconds) -> None:
        """As after a driver reload: clocks at default, counters at nothing, old handles dead."""
        for gpu in self.gpus:
            gpu.reset(now)
            gpu.zero_counter(now)
        self._header.generation += 1

    def upgrade_driver(self, now: Seconds) -> None:
        """As after the kernel module was replaced: a library that was loaded before does not fit it."""
        self.reload_driver(now)
        self._header.driver += 1

    def break_handles(self) -> None:
        """As after a daemon-reload under a container: "Unknown Error" until initialised again."""
        self._header.generation += 1


def _map(path: Path, size: int) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)


def _describe(raw: layout.Gpu, spec: GpuSpec, now: Seconds) -> None:
    if not 0 < len(spec.clocks) <= MAX_CLOCKS or sorted(spec.clocks) != list(spec.clocks):
        raise ValueError(f"{spec.uuid}: 1 to {MAX_CLOCKS} clocks, ascending")
    to = raw.spec
    to.uuid, to.pci, to.name = spec.uuid.encode(), spec.pci.encode(), spec.name.encode()
    to.settle, to.idle_watts = spec.settle, spec.idle_watts
    to.cap_low, to.cap_default, to.cap_high = spec.cap_watts
    to.ambient, to.kelvin_per_watt = spec.ambient_celsius, spec.kelvin_per_watt
    to.thermal_seconds = spec.thermal_seconds
    to.compute_major, to.compute_minor = spec.compute
    to.mig, to.vgpu, to.persistence = spec.mig, spec.vgpu, spec.persistence
    to.clock_count = len(spec.clocks)
    for i, clock in enumerate(spec.clocks):
        to.clocks[i] = clock
    raw.cap = spec.cap_watts[1]
    raw.request[0].previous, raw.request[0].at = spec.clocks[-1], now - spec.settle
    work = raw.work[0]
    work.at, work.watts, work.clock = now, spec.idle_watts, spec.clocks[-1]
    work.temperature = spec.ambient_celsius + spec.kelvin_per_watt * spec.idle_watts
