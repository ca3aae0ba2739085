"""Shell: the plant as a driver."""

import time
from collections.abc import Callable
from pathlib import Path

from gpu_agent.device import (
    Broken,
    Denied,
    DeviceError,
    Failed,
    Inventory,
    Lost,
    Reading,
    Unsupported,
    reason_names,
)
from gpu_agent.plant import Plant, PlantGpu
from gpu_agent.plant_layout import Call, NvmlReturn
from joulegate.errors import UserError
from joulegate.units import MegaHertz, Seconds, Watts

ERRORS: dict[int, type[DeviceError]] = {
    NvmlReturn.NOT_SUPPORTED: Unsupported,
    NvmlReturn.NO_PERMISSION: Denied,
    NvmlReturn.GPU_IS_LOST: Lost,
    NvmlReturn.UNKNOWN: Broken,
}


class EmulatedDriver:
    """`Driver` over a plant file. Errors injected there come out as NVML's would."""

    def __init__(self, path: Path, clock: Callable[[], Seconds]) -> None:
        self._path = path
        self._clock = clock
        self._gpus: dict[str, PlantGpu] = {}
        self._plant: Plant | None = None
        self._generation = 0
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        try:
            plant = Plant.open(self._path)
        except UserError as error:
            raise Broken(error.message) from error
        self._gpus = {gpu.uuid: gpu for gpu in plant.gpus}
        self._plant, self._generation = plant, plant.generation
        self._file = _identity(self._path)

    def close(self) -> None:
        self._plant, self._gpus = None, {}

    def version(self) -> str:
        return f"emulated by {self._path}"

    def inventory(self) -> tuple[Inventory, ...]:
        return tuple(
            Inventory(
                gpu.uuid, i, gpu.name, gpu.pci, gpu.clocks, _cap_range(gpu), _obstacle(gpu), gpu.persistence
            )
            for i, gpu in enumerate(self._opened().gpus)
        )

    def read(self, uuid: str) -> Reading:
        gpu, now = self._gpu(uuid, Call.CLOCK), self._clock()
        for call in (Call.POWER, Call.TEMPERATURE, Call.REASONS, Call.PROCESSES):
            _check(gpu, call)
        counts = gpu.error(Call.ENERGY) != NvmlReturn.NOT_SUPPORTED
        if counts:
            _check(gpu, Call.ENERGY)
        return Reading(
            clock=gpu.sm_clock_at(now),
            watts=gpu.watts_at(now),
            counter=gpu.energy_at(now) if counts else None,
            celsius=gpu.temperature_at(now),
            reasons=reason_names(gpu.reasons_at(now)),
            processes=gpu.processes,
        )

    def clock(self, uuid: str) -> MegaHertz:
        return self._gpu(uuid, Call.CLOCK).sm_clock_at(self._clock())

    def lock(self, uuid: str, low: MegaHertz, high: MegaHertz) -> None:
        gpu = self._gpu(uuid, Call.LOCK)
        time.sleep(gpu.write_seconds)
        gpu.lock(low, high, self._clock())

    def reset(self, uuid: str) -> None:
        gpu = self._gpu(uuid, Call.RESET)
        time.sleep(gpu.write_seconds)
        gpu.reset(self._clock())

    def cap(self, uuid: str) -> Watts:
        return self._gpu(uuid, Call.POWER).cap

    def set_cap(self, uuid: str, watts: Watts) -> None:
        gpu = self._gpu(uuid, Call.CAP)
        low, _, high = gpu.cap_watts
        if not low <= watts <= high:
            raise Failed(f"{uuid}: a cap of {watts:.0f} W is outside {low:.0f}-{high:.0f} W")
        gpu.cap = watts

    def _opened(self) -> Plant:
        plant = self._plant
        if plant is None:
            raise Broken("the plant is not open")
        if plant.generation != self._generation:
            raise Broken("the driver was reloaded")
        if _identity(self._path) not in (self._file, None):
            raise Broken("the emulator was started again, with a new plant")
        return plant

    def _gpu(self, uuid: str, call: Call) -> PlantGpu:
        self._opened()
        gpu = self._gpus.get(uuid)
        if gpu is None:
            raise Lost(f"{uuid}: no such GPU")
        _check(gpu, call)
        return gpu


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file this is; None when it is gone (the mapping is still good)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check(gpu: PlantGpu, call: Call) -> None:
    code = gpu.error(call)
    if code:
        raise ERRORS.get(code, Failed)(f"{gpu.uuid}: {call.name.lower()}: NVML error {code}")


def _cap_range(gpu: PlantGpu) -> tuple[Watts, Watts]:
    return gpu.cap_watts[0], gpu.cap_watts[2]


def _obstacle(gpu: PlantGpu) -> str | None:
    if gpu.mig:
        return "MIG is on: a clock lock holds for the whole GPU"
    if gpu.vgpu:
        return "the GPU is virtual: its host sets the clocks"
    if gpu.compute < (7, 0):
        return "clock locks need a Volta GPU or later"
    return None
