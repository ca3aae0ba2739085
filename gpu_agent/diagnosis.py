"""Pure: what a node's facts mean: what works, what does not, and the command that mends it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from gpu_agent.device import Inventory

# Programs that set GPU clocks or caps themselves, by their name in /proc/PID/comm (15 characters at most).
RIVALS: Mapping[str, str] = {
    "nv-hostengine": "dcgmi config --get shows whether DCGM holds clocks; remove them there",
    "nvidia-powerd": "systemctl disable --now nvidia-powerd",
    "nvidia-pstated": "systemctl disable --now nvidia-pstated",
    "gppmd": "stop gppm",
    "lactd": "systemctl disable --now lactd",
    "zeusd": "let nobody but this agent use its clock routes, or set 'device: {kind: zeusd}'",
    "tuxclocker-hel": "stop TuxClocker",
}


NVIDIA = "nvidia-smi must work here; in a container: --gpus all, NVIDIA_DRIVER_CAPABILITIES=utility"
# Words of a driver that cannot be used for want of something else.
DRIVERS: Mapping[str, str] = {
    "Python package": "install it where `joulegate` is: pip install '.[nvml]' in the checkout",
    "the plant": "joulegate emulate makes it; name the same file in fleet.yaml and in device.plant",
}
# Words of `Inventory.obstacle`, and the way round.
OBSTACLES: Mapping[str, str] = {
    "MIG": "nvidia-smi -i UUID -mig 0, if nobody else needs the slices; else leave it to observe",
    "virtual": "run the agent on the host of the virtual machine",
}


class Level(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Who computes on one GPU."""

    commands: tuple[str, ...]
    foreign: str | None  # the first that is not among `own_processes`
    trouble: str | None = None  # why it cannot be read


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on the node."""

    driver_problem: str | None
    driver_version: str
    gpus: tuple[Inventory, ...]
    work: Mapping[str, Work]  # by GPU
    idle_units: tuple[str, ...] | None  # systemd units that will not start at boot; None: no systemd here
    allow_writes: bool
    may_set_clocks: bool  # root or CAP_SYS_ADMIN
    may_kill: bool  # root or CAP_KILL
    has_pidfd: bool
    rivals: tuple[str, ...]
    watchdog: str | None  # why it does not answer; None: it does
    state_problem: str | None
    left_locked: frozenset[str]
    agent_runs: bool


def diagnose(facts: Facts) -> list[Finding]:
    """Worst last, so that it stands above the prompt."""
    findings = [*_driver(facts), *_rights(facts), *_safety(facts), *_units(facts), *_rivals(facts)]
    order = list(Level)
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.driver_problem is not None:
        yield Finding(
            Level.FAILURE,
            f"the driver cannot be used: {facts.driver_problem}",
            next((fix for word, fix in DRIVERS.items() if word in facts.driver_problem), NVIDIA),
        )
        return
    yield Finding(Level.OK, f"driver {facts.driver_version}, {len(facts.gpus)} GPUs")
    for gpu in facts.gpus:
        yield from _gpu(gpu, facts.work.get(gpu.uuid))


def _gpu(gpu: Inventory, work: Work | None) -> Iterator[Finding]:
    if work is not None and work.trouble is not None:
        yield Finding(
            Level.FAILURE,
            f"{gpu.uuid} cannot be read: {work.trouble}",
            "dmesg | grep -i xid; a GPU that fell off the bus needs a reset or a reboot",
        )
    if gpu.obstacle is not None:
        yield Finding(Level.WARNING, f"{gpu.uuid} is only watched: {gpu.obstacle}", _way_round(gpu.obstacle))
    else:
        yield Finding(Level.OK, f"{gpu.uuid} {gpu.name}: clocks {gpu.clocks[0]}-{gpu.clocks[-1]} MHz")
    if gpu.cap_range is None:
        yield Finding(Level.WARNING, f"{gpu.uuid} has no power cap, so a budget cannot be enforced by one")
    else:
        low, high = gpu.cap_range
        yield Finding(Level.OK, f"{gpu.uuid}: power cap {low:.0f}-{high:.0f} W")
    if gpu.persistence is False:
        yield Finding(
            Level.WARNING,
            f"{gpu.uuid}: persistence mode is off, so the driver unloads when idle",
            f"nvidia-smi -i {gpu.uuid} -pm 1",
        )
    if work is not None and work.foreign is not None:
        yield Finding(
            Level.WARNING,
            f"{gpu.uuid} is only watched: {work.foreign}",
            "end it, or add its name to own_processes",
        )
    elif work is not None and work.commands:
        yield Finding(Level.OK, f"{gpu.uuid}: in use by {', '.join(work.commands)}")


def _way_round(obstacle: str) -> str:
    """What an operator can do about it, if anything."""
    return next((fix for word, fix in OBSTACLES.items() if word in obstacle), "")


def _rights(facts: Facts) -> Iterator[Finding]:
    if not facts.allow_writes:
        yield Finding(Level.WARNING, "allow_writes is false: the agent only watches", "allow_writes: true")
    elif not facts.may_set_clocks:
        yield Finding(
            Level.FAILURE,
            "no right to set clocks",
            "run as root or with CAP_SYS_ADMIN; in a container: --cap-add SYS_ADMIN",
        )
    else:
        yield Finding(Level.OK, "may set clocks")


def _safety(facts: Facts) -> Iterator[Finding]:
    if not facts.allow_writes:
        return
    if not facts.has_pidfd:
        yield Finding(Level.FAILURE, "the kernel has no pidfd", "Linux 5.3 or later")
    if not facts.may_kill:
        yield Finding(
            Level.FAILURE, "the watchdog could not end a hung agent", "run as root, or add CAP_KILL"
        )
    if facts.watchdog is not None:
        yield Finding(
            Level.FAILURE,
            f"no watchdog, so nothing will be lowered: {facts.watchdog}",
            "systemctl enable --now joulegate-watchdog",
        )
    else:
        yield Finding(Level.OK, "the watchdog answers")
    if facts.state_problem is not None:
        yield Finding(
            Level.FAILURE, f"state_dir cannot be used: {facts.state_problem}", "free space, or set state_dir"
        )
    if facts.left_locked and not facts.agent_runs:
        names = ", ".join(sorted(facts.left_locked))
        yield Finding(
            Level.FAILURE,
            f"left locked by an agent that is gone: {names}",
            "start the agent or the watchdog, either frees them; by hand: nvidia-smi -rgc",
        )


def _units(facts: Facts) -> Iterator[Finding]:
    if facts.idle_units is None:
        return
    for unit in facts.idle_units:
        yield Finding(
            Level.WARNING,
            f"{unit} will not start at boot",
            f"install -m 644 deploy/systemd/{unit} /etc/systemd/system/ && systemctl enable --now {unit}",
        )
    if not facts.idle_units:
        yield Finding(Level.OK, "agent and watchdog start at boot")


def _rivals(facts: Facts) -> Iterator[Finding]:
    if not facts.rivals:
        yield Finding(Level.OK, "nobody else known to set clocks runs here")
    for name in facts.rivals:
        yield Finding(Level.WARNING, f"{name} runs and may set clocks too", RIVALS[name])
