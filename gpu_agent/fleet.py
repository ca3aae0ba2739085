"""Shell: the GPUs that agent.yaml tells the agent to manage."""

from dataclasses import replace

from gpu_agent.ceilings import limits_for
from gpu_agent.device import Denied, DeviceError, Driver, Inventory
from gpu_agent.drivers import monotonic
from gpu_agent.managed import ManagedGpu, Policy
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings
from joulegate.units import MegaHertz, Seconds


def managed(settings: AgentSettings, driver: Driver) -> list[ManagedGpu]:
    """Open the driver and take up its GPUs. Raises UserError."""
    try:
        driver.open()
        found = driver.inventory()
    except DeviceError as error:
        raise UserError(f"the driver cannot be opened: {error}", "joulegate doctor says more") from error
    clocks = settings.clocks
    policy = Policy(
        allow_writes=settings.allow_writes,
        tolerance=MegaHertz(clocks.tolerance_mhz),
        settle=Seconds(clocks.settle_ms / 1000.0),
        pause=Seconds(clocks.pause_s),
        own_processes=frozenset(settings.own_processes),
    )
    return [
        ManagedGpu(
            driver,
            _probed(driver, gpu) if settings.allow_writes else gpu,
            limits_for(
                gpu.clocks, clocks.min_mhz, clocks.max_mhz, clocks.site_lock_mhz, Seconds(clocks.dwell_s)
            ),
            policy,
            monotonic,
        )
        for gpu in _chosen(found, settings.device.gpus)
    ]


def _probed(driver: Driver, gpu: Inventory) -> Inventory:
    """Whether we may write, asked without changing anything: set the power cap to what it is."""
    try:
        driver.set_cap(gpu.uuid, driver.cap(gpu.uuid))
    except Denied as error:
        return replace(gpu, obstacle=f"{error} (needs root or CAP_SYS_ADMIN)")
    except DeviceError:
        return gpu  # no cap on this GPU, or none now: the first clock write will tell
    return gpu


def _chosen(found: tuple[Inventory, ...], wanted: tuple[str, ...]) -> list[Inventory]:
    missing = sorted(set(wanted) - {gpu.uuid for gpu in found})
    if missing:
        raise UserError(
            f"no such GPU: {', '.join(missing)}",
            f"this node has {', '.join(gpu.uuid for gpu in found) or 'none'}",
        )
    return [gpu for gpu in found if not wanted or gpu.uuid in wanted]
