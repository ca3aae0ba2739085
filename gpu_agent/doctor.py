"""Shell: gathers the facts of a node for `gpu_agent.diagnosis`. Changes nothing."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.device import DeviceError, Driver, Inventory
from gpu_agent.diagnosis import RIVALS, Facts, Work
from gpu_agent.drivers import driver_for
from gpu_agent.processes import command_of, foreign
from gpu_agent.state_file import claimant, read
from gpu_agent.watchdog_link import WatchdogLink
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings, ZeusdDevice
from joulegate.units import Seconds

CAP_KILL, CAP_SYS_ADMIN = 5, 21
UNITS = ("joulegate-watchdog.service", "joulegate-agent.service")


@dataclass(frozen=True, slots=True)
class _Found:
    """What the driver says of itself."""

    problem: str | None
    version: str = ""
    gpus: tuple[Inventory, ...] = ()
    work: Mapping[str, Work] = field(default_factory=dict)


def examine(settings: AgentSettings) -> Facts:
    driver = _driver(settings)
    capabilities = _capabilities(Path("/proc/self/status").read_text())
    state_problem, locked, runs = _state(settings.state_dir)
    over_zeusd = isinstance(settings.device, ZeusdDevice)  # then it has the rights, and is no rival
    return Facts(
        driver_problem=driver.problem,
        driver_version=driver.version,
        gpus=driver.gpus,
        work=driver.work,
        idle_units=_idle_units(Path("/")),
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


def _driver(settings: AgentSettings) -> _Found:
    wanted, own = settings.device.gpus, settings.own_processes
    try:
        driver = driver_for(settings)
        driver.open()
        gpus = tuple(gpu for gpu in driver.inventory() if not wanted or gpu.uuid in wanted)
        found = _Found(None, driver.version(), gpus, {gpu.uuid: _work(driver, gpu.uuid, own) for gpu in gpus})
        driver.close()
    except DeviceError as error:
        return _Found(str(error))
    except UserError as error:
        return _Found(f"{error.message} ({error.help})")
    return found


def _work(driver: Driver, uuid: str, own: tuple[str, ...]) -> Work:
    try:
        pids = driver.read(uuid).processes
    except DeviceError as error:
        return Work((), None, str(error))
    commands = sorted({command_of(pid) or f"process {pid}" for pid in pids})
    return Work(tuple(commands), foreign(pids, own))


def _idle_units(root: Path) -> tuple[str, ...] | None:
    """Units of ours that no target wants; None where no systemd runs."""
    if not (root / "run/systemd/system").is_dir():
        return None
    wanted = {link.name for link in root.glob("etc/systemd/system/*.wants/*.service")}
    return tuple(unit for unit in UNITS if unit not in wanted)


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
