"""Shell: the driver that agent.yaml names, or the state file of an agent that is gone."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_agent.device import Driver
from gpu_agent.state_file import Undo
from joulegate.errors import UserError
from joulegate.units import Seconds

if TYPE_CHECKING:  # it takes long to import, and clocks may have to be freed first
    from joulegate.settings.agent import AgentSettings


def monotonic() -> Seconds:
    return Seconds(time.monotonic())


def driver_for(settings: "AgentSettings") -> Driver:
    """Not opened yet. Raises UserError when the driver's Python package is missing."""
    device = settings.device
    if device.kind == "emulated":
        return _emulated(device.plant)
    if device.kind == "zeusd":
        from gpu_agent.zeusd import ZeusdDriver
        from joulegate.settings.load import read_secret

        return ZeusdDriver(_nvml(), device.socket, read_secret(device.token, device.token_file))
    return _nvml()


def undo_for(settings: "AgentSettings") -> Undo | None:
    """What a successor needs to free clocks without these settings; None where that takes a secret."""
    device, site_lock = settings.device, settings.clocks.site_lock_mhz
    if device.kind == "zeusd":
        return None
    return Undo(str(device.plant) if device.kind == "emulated" else None, site_lock)


def driver_to(undo: Undo) -> Driver:
    """Not opened yet. Raises UserError when the driver's Python package is missing."""
    return _emulated(Path(undo.plant)) if undo.plant is not None else _nvml()


def _emulated(plant: Path) -> Driver:
    from gpu_agent.emulated import EmulatedDriver

    return EmulatedDriver(plant, monotonic)


def _nvml() -> Driver:
    try:
        from gpu_agent.nvml import NvmlDriver
    except ModuleNotFoundError as error:
        raise UserError(
            f"NVIDIA GPUs need the Python package {error.name!r}", "pip install '.[nvml]' in the checkout"
        ) from error
    return NvmlDriver()
