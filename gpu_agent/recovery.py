"""Shell: first thing at start, before anything heavy is imported: free what an earlier run left locked."""

import logging
from collections.abc import Iterable

from gpu_agent.device import DeviceError, Driver
from gpu_agent.site_state import restore_by_inventory

log = logging.getLogger(__name__)


def free_left_overs(driver: Driver, locked: Iterable[str], site_lock: int | None) -> None:
    """What cannot be freed now is tried again once the agent runs."""
    left = sorted(locked)
    if not left:
        return
    log.warning("clock locks of an earlier run", extra={"gpus": left})
    try:
        driver.open()
    except DeviceError as error:
        log.error("driver does not open", extra={"why": str(error)})
        return
    for uuid in left:
        try:
            restore_by_inventory(driver, uuid, site_lock)
        except DeviceError as error:
            log.error("restore failed", extra={"gpu": uuid, "why": str(error)})
    driver.close()
