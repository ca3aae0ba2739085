"""Shell: the watchdog as a process: built from the agent's own agent.yaml."""

import signal

from gpu_agent.device import Driver
from gpu_agent.drivers import driver_for
from gpu_agent.site_state import restore_by_inventory
from gpu_agent.watchdog import Watchdog
from joulegate.settings.agent import AgentSettings


def run(settings: AgentSettings, exit_with_agent: bool) -> bool:
    """Until SIGTERM or SIGINT; or True: a new process must take over. Raises UserError."""
    site_lock = settings.clocks.site_lock_mhz

    def restore(driver: Driver, uuid: str) -> None:
        restore_by_inventory(driver, uuid, site_lock)

    watchdog = Watchdog(
        settings.watchdog.socket, settings.state_dir, driver_for(settings), restore, exit_with_agent
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: watchdog.stop())
    watchdog.run()
    return watchdog.outdated
