"""Shell: before the web server is imported: free what an earlier run left locked, and name it."""

import logging
from dataclasses import replace

from gpu_agent.device import DeviceError, Driver
from gpu_agent.site_state import restore_by_inventory
from gpu_agent.state_file import StateFile

log = logging.getLogger(__name__)


def free_left_overs(driver: Driver, state: StateFile, site_lock: int | None) -> None:
    """What is freed leaves the file: from then on a watchdog has nothing to hold against this agent.

    What cannot be freed now is tried again once the agent runs.
    """
    left = sorted(state.memory.locked)
    if not left:
        return
    log.warning("clock locks of an earlier run", extra={"gpus": left})
    try:
        driver.open()
    except DeviceError as error:
        log.error("driver does not open", extra={"why": str(error)})
        return
    stuck = frozenset(uuid for uuid in left if not _restored(driver, uuid, site_lock))
    driver.close()
    try:
        state.save(replace(state.memory, locked=stuck))
    except OSError as error:
        log.error("state not saved", extra={"why": error.strerror or str(error)})


def _restored(driver: Driver, uuid: str, site_lock: int | None) -> bool:
    try:
        restore_by_inventory(driver, uuid, site_lock)
    except DeviceError as error:
        log.error("restore failed", extra={"gpu": uuid, "why": str(error)})
        return False
    return True
