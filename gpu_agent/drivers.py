"""Shell: the driver that agent.yaml names."""

import time

from gpu_agent.device import Driver
from gpu_agent.emulated import EmulatedDriver
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings, EmulatedDevice
from joulegate.units import Seconds


def monotonic() -> Seconds:
    return Seconds(time.monotonic())


def driver_for(settings: AgentSettings) -> Driver:
    """Not opened yet. Raises UserError when the driver's Python package is missing."""
    device = settings.device
    if isinstance(device, EmulatedDevice):
        return EmulatedDriver(device.plant, monotonic)
    try:
        from gpu_agent.nvml import NvmlDriver
    except ModuleNotFoundError as error:
        raise UserError(
            f"NVIDIA GPUs need the Python package {error.name!r}", "pip install 'joulegate[nvml]'"
        ) from error
    return NvmlDriver()
