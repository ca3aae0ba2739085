"""Shell: the driver that agent.yaml names."""

import time

from gpu_agent.device import Driver
from gpu_agent.emulated import EmulatedDriver
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings, EmulatedDevice, ZeusdDevice
from joulegate.settings.load import read_secret
from joulegate.units import Seconds


def monotonic() -> Seconds:
    return Seconds(time.monotonic())


def driver_for(settings: AgentSettings) -> Driver:
    """Not opened yet. Raises UserError when the driver's Python package is missing."""
    device = settings.device
    if isinstance(device, EmulatedDevice):
        return EmulatedDriver(device.plant, monotonic)
    if isinstance(device, ZeusdDevice):
        from gpu_agent.zeusd import ZeusdDriver

        return ZeusdDriver(_nvml(), device.socket, read_secret(device.token, device.token_file))
    return _nvml()


def _nvml() -> Driver:
    try:
        from gpu_agent.nvml import NvmlDriver
    except ModuleNotFoundError as error:
        raise UserError(
            f"NVIDIA GPUs need the Python package {error.name!r}", "pip install 'joulegate[nvml]'"
        ) from error
    return NvmlDriver()
