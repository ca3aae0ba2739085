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
from math import inf
from typing import Any, TypeVar

import pynvml

from gpu_agent.device import (
    Broken,
    Denied,
    DeviceError,
    Failed,
    Inventory,
    Lost,
    Outdated,
    Reading,
    Unsupported,
    reason_names,
)
from joulegate.units import Joules, MegaHertz, Watts

log = logging.getLogger(__name__)
T = TypeVar("T")
Handle = Any  # pynvml has no types; a handle is an opaque pointer
SLOW = 1.0  # seconds between two readings of what changes slowly
BRISK = 0.25  # of reasons; and of power, where a counter counts the energy: the costliest of the calls

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
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Outdated,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Broken,
}


@dataclass(slots=True)
class _Kept:
    """What is not read anew each time, and when it was read."""

    slow_at: float = -inf
    celsius: float = 0.0
    processes: tuple[int, ...] = ()
    brisk_at: float = -inf
    watts: Watts = Watts(0.0)
    reasons: tuple[str, ...] = ()


class NvmlDriver:
    """`Driver` over libnvidia-ml.so.1."""

    def __init__(self) -> None:
        self._handles: dict[str, Handle] = {}
        self._inventory: tuple[Inventory, ...] = ()
        self._opened = False
        self._kept: dict[str, _Kept] = {}

    def open(self) -> None:
        self.close()
        self._kept.clear()
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

    def version(self) -> str:
        return str(_call("version", pynvml.nvmlSystemGetDriverVersion))

    def inventory(self) -> tuple[Inventory, ...]:
        return self._inventory

    def read(self, uuid: str) -> Reading:
        handle, now = self._handle(uuid), time.monotonic()
        kept = self._kept.get(uuid)
        if kept is None:
            kept = self._kept[uuid] = _Kept()
        counter = _energy(handle)
        brisk = now - kept.brisk_at >= BRISK
        if brisk or counter is None:
            kept.watts = _power(handle)
        if brisk:
            kept.reasons, kept.brisk_at = _reasons(handle), now
        if now - kept.slow_at >= SLOW:
            kept.celsius = _offered(0.0, lambda: float(_call("temperature", _temperature, handle)))
            kept.processes = _offered((), lambda: _processes(handle))
            kept.slow_at = now
        return Reading(_clock(handle), kept.watts, counter, kept.celsius, kept.reasons, kept.processes)

    def clock(self, uuid: str) -> MegaHertz:
        return _clock(self._handle(uuid))

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


def _clock(handle: Handle) -> MegaHertz:
    try:
        return MegaHertz(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
    except pynvml.NVMLError as error:
        raise _meaning("clock", error) from error


def _power(handle: Handle) -> Watts:
    """At this moment; from an older driver its average over a second."""
    (power,) = _call("power", pynvml.nvmlDeviceGetFieldValues, handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
    if power.nvmlReturn == pynvml.NVML_SUCCESS:
        return Watts(power.value.uiVal / 1000.0)
    return Watts(_call("power", pynvml.nvmlDeviceGetPowerUsage, handle) / 1000.0)


def _energy(handle: Handle) -> Joules | None:
    """None: this GPU does not count."""
    try:
        return Joules(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0)
    except pynvml.NVMLError as error:
        return _absent(None, "energy", error)


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
        return _absent((), "reasons", error)


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


def _absent(nothing: T, what: str, error: pynvml.NVMLError) -> T:
    """`nothing` if the GPU or the driver does not offer it. Raises DeviceError for any other trouble."""
    meaning = _meaning(what, error)
    if isinstance(meaning, Unsupported | Denied):
        return nothing
    raise meaning from error


def _meaning(what: str, error: pynvml.NVMLError) -> DeviceError:
    return ERRORS.get(error.value, Failed)(f"{what}: {error}")
