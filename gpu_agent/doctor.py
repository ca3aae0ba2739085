"""Shell: gathers the facts of a node for `gpu_agent.diagnosis`. Changes nothing."""

import os
from pathlib import Path

from gpu_agent.device import DeviceError, Inventory
from gpu_agent.diagnosis import RIVALS, Facts
from gpu_agent.drivers import driver_for
from gpu_agent.state_file import claimant, read
from gpu_agent.watchdog_link import WatchdogLink
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings, ZeusdDevice
from joulegate.units import Seconds

CAP_KILL, CAP_SYS_ADMIN = 5, 21


def examine(settings: AgentSettings) -> Facts:
    problem, gpus = _driver(settings)
    capabilities = _capabilities(Path("/proc/self/status").read_text())
    state_problem, locked, runs = _state(settings.state_dir)
    over_zeusd = isinstance(settings.device, ZeusdDevice)  # then it has the rights, and is no rival
    return Facts(
        driver_problem=problem,
        gpus=gpus,
        allow_writes=settings.allow_writes,
        may_set_clocks=over_zeusd or bool(capabilities & 1 << CAP_SYS_ADMIN),
        may_kill=bool(capabilities & 1 << CAP_KILL),
        has_pidfd=_has_pidfd(),
        rivals=tuple(name for name in _rivals(Path("/proc")) if not (over_zeusd and name == "zeusd")),
        watchdog=_watchdog(settings),
        state_problem=state_problem,
        left_locked=locked,
        agent_runs=runs,
    )


def _driver(settings: AgentSettings) -> tuple[str | None, tuple[Inventory, ...]]:
    try:
        driver = driver_for(settings)
        driver.open()
        gpus = driver.inventory()
        driver.close()
    except DeviceError as error:
        return str(error), ()
    except UserError as error:
        return f"{error.message} ({error.help})", ()
    wanted = settings.device.gpus
    return None, tuple(gpu for gpu in gpus if not wanted or gpu.uuid in wanted)


def _capabilities(status: str) -> int:
    """The effective set, as a bit mask."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0


def _state(folder: Path) -> tuple[str | None, frozenset[str], bool]:
    """(why it cannot be used, GPUs named as locked, whether an agent holds it)."""
    if not folder.exists():
        return None, frozenset(), False
    if not os.access(folder, os.W_OK):
        return f"{folder} is not writable", frozenset(), False
    free = os.statvfs(folder).f_bavail
    try:
        pidfd = claimant(folder)
        locked = read(folder).locked
    except UserError as error:
        return error.message, frozenset(), False
    if pidfd is not None:
        os.close(pidfd)
    return (None if free else f"{folder} is on a full disk"), locked, pidfd is not None


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _watchdog(settings: AgentSettings) -> str | None:
    link = WatchdogLink(settings.watchdog.socket, Seconds(settings.watchdog.ack_ms / 1000.0))
    answers = link.arm(None, ())
    link.close()
    return None if answers else link.problem


def _rivals(proc: Path) -> tuple[str, ...]:
    names = set()
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                names.add((entry / "comm").read_text().strip())
            except OSError:
                continue  # it has just ended
    return tuple(sorted(names & RIVALS.keys()))
