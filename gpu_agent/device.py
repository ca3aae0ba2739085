"""Pure: what the agent asks of a driver, whichever it is: NVML, the plant, zeusd.

DeviceError
├── Denied       the driver wants more rights than this process has
├── Unsupported  this GPU, or this driver, does not have the knob
├── Lost         the GPU does not answer; the others may
├── Broken       the library must be opened again (driver reload, "Unknown Error" in a container)
│   └── Outdated the driver has been upgraded: only a new process can load the new library
└── Failed       anything else
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from joulegate.units import Joules, MegaHertz, Watts

# NVML's clock-event bits by the words used in messages and metrics.
REASONS = {
    0x001: "idle",
    0x002: "application_clocks",
    0x004: "power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "thermal",
    0x040: "hw_thermal",
    0x080: "power_brake",
    0x100: "display_clocks",
}
THROTTLING = frozenset({"power_cap", "hw_slowdown", "thermal", "hw_thermal", "power_brake"})


class DeviceError(Exception):
    """A call to the driver did not work; the message is for the operator."""


class Denied(DeviceError):
    pass


class Unsupported(DeviceError):
    pass


class Lost(DeviceError):
    pass


class Broken(DeviceError):
    pass


class Outdated(Broken):
    pass


class Failed(DeviceError):
    pass


@dataclass(frozen=True, slots=True)
class Inventory:
    """What does not change about one GPU."""

    uuid: str
    index: int
    name: str
    pci: str
    clocks: tuple[MegaHertz, ...]  # supported SM clocks, ascending
    cap_range: tuple[Watts, Watts] | None  # lowest and highest power cap; None: the GPU has none
    obstacle: str | None = None  # why its clocks cannot be set, as far as looking can tell
    persistence: bool | None = None  # whether the driver stays loaded without clients; None: it does not say


@dataclass(slots=True)
class Reading:
    """One GPU at one moment. Not frozen, only to be made faster; nobody changes it."""

    clock: MegaHertz
    watts: Watts
    counter: Joules | None  # energy since the driver was loaded; None: this GPU does not count
    celsius: float
    reasons: tuple[str, ...]
    processes: tuple[int, ...]


class Driver(Protocol):
    """All GPUs of a node, by UUID. Calls raise DeviceError, and may be made from any thread."""

    def open(self) -> None:
        """Take the library up, or take it up again."""

    def close(self) -> None:
        """Let the library go. Nothing is reset."""

    def version(self) -> str:
        """The driver's, for people."""
        ...

    def inventory(self) -> tuple[Inventory, ...]: ...

    def read(self, uuid: str) -> Reading: ...

    def clock(self, uuid: str) -> MegaHertz:
        """The SM clock alone: cheap enough to watch it arrive."""
        ...

    def lock(self, uuid: str, low: MegaHertz, high: MegaHertz) -> None: ...

    def reset(self, uuid: str) -> None:
        """Clocks back to the driver's default."""

    def cap(self, uuid: str) -> Watts:
        """The power cap that is set."""
        ...

    def set_cap(self, uuid: str, watts: Watts) -> None: ...


@lru_cache(maxsize=256)
def reason_names(mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in REASONS.items() if mask & bit)
