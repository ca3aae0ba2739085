"""Shell: NVIDIA GPUs through NVML. The only module that imports pynvml.

By UUID: an index means another GPU after CUDA_VISIBLE_DEVICES or a reboot. Memory clocks are left alone.
Power is the instantaneous field where the driver has it: nvmlDeviceGetPowerUsage is a one-second average on
recent GPUs. What a GPU does not offer reads as nothing; clock, power and energy errors are errors.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeVar

import pynvml

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
from joulegate.units import Joules, MegaHertz, Watts

log = logging.getLogger(__name__)
T = TypeVar("T")
Handle = Any  # pynvml has no types; a handle is an opaque pointer
FIELDS = ((pynvml.NVML_FI_DEV_POWER_INSTANT, 0), (pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 0))
# Two nvmlFieldValue_t: of each its nvmlReturn, and its value as milliwatts or millijoules. pynvml's own
# structures take ten times as long to look into.
FIELD_VALUES = Struct("=28xiI4x28xiQ")
SLOW = 1.0  # seconds between two readings of what changes slowly

ERRORS: dict[int, type[DeviceError]] = {
    pynvml.NVML_ERROR_NO_PERMISSION: Denied,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Unsupported,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Unsupported,
    pynvml.NVML_ERROR_GPU_IS_LOST: Lost,
    pynvml.NVML_ERROR_NOT_FOUND: Lost,
    pynvml.NVML_ERROR_RESET_REQUIRED: Lost,
    pynvml.NVML_ERROR_UNKNOWN: Broken,
    pynvml.NVML_ERROR_UNINITIALIZED: Broken,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: Broken,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Broken,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Broken,
}


@dataclass(frozen=True, slots=True)
class _Slow:
    at: float
    celsius: float
    processes: tuple[int, ...]


class NvmlDriver:
    """`Driver` over libnvidia-ml.so.1."""

    def __init__(self) -> None:
        self._handles: dict[str, Handle] = {}
        self._inventory: tuple[Inventory, ...] = ()
        self._opened = False
        self._slow: dict[str, _Slow] = {}

    def open(self) -> None:
        self.close()
        self._slow.clear()
        _call("init", pynvml.nvmlInit)
        self._opened = True
        handles, inventory = {}, []
        for index in range(_call("count", pynvml.nvmlDeviceGetCount)):
            try:
                handle = _call("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
                gpu = _describe(handle, index)
            except Broken:
                raise
            except DeviceError as error:
                log.error("GPU left out", extra={"index": index, "why": str(error)})
                continue
            handles[gpu.uuid] = handle
            inventory.append(gpu)
        self._handles, self._inventory = handles, tuple(inventory)

    def close(self) -> None:
        if self._opened:
            with contextlib.suppress(pynvml.NVMLError):  # a library that broke cannot be shut either
                pynvml.nvmlShutdown()
        self._opened = False

    def inventory(self) -> tuple[Inventory, ...]:
        return self._inventory

    def read(self, uuid: str) -> Reading:
        handle = self._handle(uuid)
        slow = self._slow_reading(uuid, handle)
        watts, counter = _power_and_energy(handle)
        return Reading(self.clock(uuid), watts, counter, slow.celsius, _reasons(handle), slow.processes)

    def clock(self, uuid: str) -> MegaHertz:
        try:
            return MegaHertz(pynvml.nvmlDeviceGetClockInfo(self._handle(uuid), pynvml.NVML_CLOCK_SM))
        except pynvml.NVMLError as error:
            raise _meaning("clock", error) from error

    def lock(self, uuid: str, low: MegaHertz, high: MegaHertz) -> None:
        _call(f"{uuid}: lock clocks", pynvml.nvmlDeviceSetGpuLockedClocks, self._handle(uuid), low, high)

    def reset(self, uuid: str) -> None:
        _call(f"{uuid}: reset clocks", pynvml.nvmlDeviceResetGpuLockedClocks, self._handle(uuid))

    def cap(self, uuid: str) -> Watts:
        milliwatts = _call(f"{uuid}: cap", pynvml.nvmlDeviceGetPowerManagementLimit, self._handle(uuid))
        return Watts(milliwatts / 1000.0)

    def set_cap(self, uuid: str, watts: Watts) -> None:
        _call(
            f"{uuid}: set cap",
            pynvml.nvmlDeviceSetPowerManagementLimit,
            self._handle(uuid),
            round(watts * 1000),
        )

    def _slow_reading(self, uuid: str, handle: Handle) -> _Slow:
        """Temperature and processes, read anew once a second."""
        now, slow = time.monotonic(), self._slow.get(uuid)
        if slow is None or now - slow.at >= SLOW:
            celsius = _offered(0.0, lambda: float(_call("temperature", _temperature, handle)))
            slow = self._slow[uuid] = _Slow(now, celsius, _offered((), lambda: _processes(handle)))
        return slow

    def _handle(self, uuid: str) -> Handle:
        if not self._opened:
            raise Broken("NVML is not open")
        handle = self._handles.get(uuid)
        if handle is None:
            raise Lost(f"{uuid}: no such GPU")
        return handle


def _describe(handle: Handle, index: int) -> Inventory:
    uuid = str(_call("uuid", pynvml.nvmlDeviceGetUUID, handle))
    none: tuple[MegaHertz, ...] = ()
    clocks = _offered(none, lambda: _clocks(uuid, handle))
    limits = _offered(None, lambda: _cap_range(uuid, handle))
    pci = _call(f"{uuid}: pci", pynvml.nvmlDeviceGetPciInfo, handle).busId
    return Inventory(
        uuid=uuid,
        index=index,
        name=str(_call(f"{uuid}: name", pynvml.nvmlDeviceGetName, handle)),
        pci=pci.decode() if isinstance(pci, bytes) else str(pci),
        clocks=clocks or (MegaHertz(_call("max clock", pynvml.nvmlDeviceGetMaxClockInfo, handle, 1)),),
        cap_range=limits,
        obstacle=_obstacle(uuid, handle, bool(clocks)),
        persistence=_offered(
            None, lambda: bool(_call("persistence", pynvml.nvmlDeviceGetPersistenceMode, handle))
        ),
    )


def _clocks(uuid: str, handle: Handle) -> tuple[MegaHertz, ...]:
    """SM clocks at the highest memory clock, ascending."""
    memory = max(_call(f"{uuid}: memory clocks", pynvml.nvmlDeviceGetSupportedMemoryClocks, handle))
    found = _call(f"{uuid}: clocks", pynvml.nvmlDeviceGetSupportedGraphicsClocks, handle, memory)
    return tuple(MegaHertz(clock) for clock in sorted(found))


def _cap_range(uuid: str, handle: Handle) -> tuple[Watts, Watts]:
    low, high = _call(f"{uuid}: caps", pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    return Watts(low / 1000.0), Watts(high / 1000.0)


def _obstacle(uuid: str, handle: Handle, lists_clocks: bool) -> str | None:
    """Why a clock lock cannot work or would hit others, as far as looking can tell."""
    major, _ = _call(f"{uuid}: capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    if major < 7:
        return "clock locks need a Volta GPU or later"
    mig, _ = _offered((0, 0), lambda: _call(f"{uuid}: MIG", pynvml.nvmlDeviceGetMigMode, handle))
    if mig == pynvml.NVML_DEVICE_MIG_ENABLE:
        return "MIG is on: a clock lock holds for the whole GPU"
    mode = _offered(0, lambda: _call(f"{uuid}: vGPU", pynvml.nvmlDeviceGetVirtualizationMode, handle))
    if mode == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
        return "the GPU is virtual: its host sets the clocks"
    return None if lists_clocks else "the driver does not list this GPU's clocks"


def _power_and_energy(handle: Handle) -> tuple[Watts, Joules | None]:
    """One call for both; older drivers want two. No joules: the GPU does not count."""
    values = _call("power", pynvml.nvmlDeviceGetFieldValues, handle, FIELDS)
    no_power, milliwatts, no_energy, millijoules = FIELD_VALUES.unpack_from(values)
    if no_power:
        milliwatts = _call("power", pynvml.nvmlDeviceGetPowerUsage, handle)
    watts = Watts(milliwatts / 1000.0)
    if not no_energy:
        return watts, Joules(millijoules / 1000.0)
    millijoules = _offered(
        None, lambda: int(_call("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle))
    )
    return watts, None if millijoules is None else Joules(millijoules / 1000.0)


def _temperature(handle: Handle) -> int:
    try:
        return int(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 555
        return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _reasons(handle: Handle) -> tuple[str, ...]:
    try:
        return reason_names(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 535
        older = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
        return _offered((), lambda: reason_names(_call("reasons", older, handle)))
    except pynvml.NVMLError as error:
        meaning = _meaning("reasons", error)
        if isinstance(meaning, Unsupported | Denied):
            return ()
        raise meaning from error


def _processes(handle: Handle) -> tuple[int, ...]:
    found = _call("processes", pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return tuple(process.pid for process in found)


def _offered(nothing: T, call: Callable[[], T]) -> T:
    """The call's answer, or `nothing` from a GPU or driver that does not offer it."""
    try:
        return call()
    except (Unsupported, Denied):
        return nothing


def _call(what: str, function: Callable[..., Any], *arguments: object) -> Any:
    """One NVML call with its error in our words."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise _meaning(what, error) from error


def _meaning(what: str, error: pynvml.NVMLError) -> DeviceError:
    return ERRORS.get(error.value, Failed)(f"{what}: {error}")
