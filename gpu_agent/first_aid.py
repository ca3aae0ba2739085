"""Shell: what an agent or a watchdog does before anything else: free what a dead agent left locked.

It needs neither agent.yaml nor the libraries that read it, since the state file says how: a node whose agent
and watchdog were killed together has its clocks back as soon as Python has started. So this imports little,
not even logging.
"""

import os
from pathlib import Path

from gpu_agent.device import DeviceError
from gpu_agent.drivers import driver_to
from gpu_agent.site_state import restore_by_inventory
from gpu_agent.state_file import claimant, read
from joulegate.errors import UserError


def first_aid() -> None:
    """Free what the state file under $STATE_DIRECTORY (systemd sets it) names, unless its agent lives.

    It says nothing and leaves the file as it is: the ordinary start comes next, names the same GPUs, frees
    them again, and complains about what is wrong.
    """
    name = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if name:
        _free_what_is_named_in(Path(name))


def _free_what_is_named_in(folder: Path) -> None:
    try:
        memory = read(folder)
        if not memory.locked or memory.undo is None:
            return
        agent = claimant(folder)
        if agent is not None:
            os.close(agent)
            return
        driver = driver_to(memory.undo)
        driver.open()
    except (DeviceError, UserError, OSError):
        return
    for uuid in memory.locked:
        try:
            restore_by_inventory(driver, uuid, memory.undo.site_lock)
        except DeviceError:
            continue
    driver.close()
