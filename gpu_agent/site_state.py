"""Shell: the state a GPU goes back to: the site's own lock if it has one, else the driver's default."""

from gpu_agent.ceilings import Limits, snap
from gpu_agent.device import Driver, Lost


def restore(driver: Driver, uuid: str, limits: Limits) -> None:
    """Raises DeviceError."""
    if limits.site_lock is None:
        driver.reset(uuid)
    else:
        driver.lock(uuid, limits.floor_clock, limits.site_lock)


def restore_by_inventory(driver: Driver, uuid: str, site_lock: int | None) -> None:
    """The same for a process that keeps no limits. Raises DeviceError."""
    if site_lock is None:
        driver.reset(uuid)
        return
    for gpu in driver.inventory():
        if gpu.uuid == uuid:
            driver.lock(uuid, gpu.clocks[0], snap(gpu.clocks, site_lock))
            return
    raise Lost(f"{uuid}: no such GPU")
