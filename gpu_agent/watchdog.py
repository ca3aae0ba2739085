"""Shell: the process that owns the deadline. It frees the GPUs of an agent that cannot.

Theory of operation. The agent may lock clocks only after this process has confirmed a deadline, and moves the
deadline on as its lease is renewed. When a deadline passes, or an armed agent's socket closes, the agent is
killed first, by pidfd, and its clocks are reset once it is certainly dead: an agent that was stopped between
its last check and its write would otherwise wake up after the reset and lock the GPU for ever. Resets are
tried until they work. Every packet that waits is read before a deadline is judged, so that a watchdog which
was itself stopped does not kill an agent that has long moved on. One that may have stood still with it gets a
moment to speak (`gpu_agent.stalls`): its clocks are reset at once, and again should it have to be killed.

At start-up the state file names what an agent may have left locked; if that agent lives and does not connect
in time, it is killed like any other.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from gpu_agent.device import Broken, DeviceError, Driver, Outdated
from gpu_agent.stalls import BEAT, MOMENT, Verdict, stall_end, verdict
from gpu_agent.state_file import claimant, read
from gpu_agent.unix_socket import MAX_PACKET, bound
from joulegate.errors import UserError
from joulegate.units import Seconds

log = logging.getLogger(__name__)
RETRY = 0.2  # seconds between two tries to reset a GPU
DEATH = 2.0  # seconds a killed agent gets to be gone; after that its GPUs are reset before and after
ADOPT = 5.0  # seconds a live agent gets to connect to a watchdog that has just started
LAST = 5.0  # seconds in which a watchdog that is told to stop still frees what it has begun to free
MAX_WAITING = 16  # connections that have not said yet who they are


@dataclass(slots=True)
class Ward:
    """One agent: its socket, its process, and what it has promised."""

    pidfd: int
    pid: int
    connection: socket.socket | None
    deadline: Seconds | None = None
    gpus: frozenset[str] = frozenset()
    spared: Seconds | None = None  # until when it may speak, though its deadline has passed
    killed_at: float = inf
    forestalled: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A packet of an agent: see `gpu_agent.watchdog_link`."""

    seq: int
    deadline: Seconds | None
    gpus: frozenset[str]
    hold: bool

    @classmethod
    def read(cls, packet: bytes) -> "Said":
        """Raises ValueError, TypeError or KeyError."""
        said = json.loads(packet)
        deadline = None if said["deadline"] is None else Seconds(float(said["deadline"]))
        return cls(int(said["seq"]), deadline, frozenset(map(str, said["gpus"])), bool(said["hold"]))


@dataclass(slots=True)
class Watchdog:
    """`run` until `stop`. `restore` sets one GPU to the site's state and raises DeviceError."""

    path: Path
    state_dir: Path
    driver: Driver
    restore: Callable[[Driver, str], None]
    exit_with_agent: bool = False
    outdated: bool = False  # why `run` has returned
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _wards: list[Ward] = field(default_factory=list)
    _pending: dict[str, float] = field(default_factory=dict)  # GPU -> when to try next
    _opened: bool = False
    _was_open: bool = False  # ever
    _running: bool = True
    _wake: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    _waiting: int = 0  # connections that have not said yet who they are
    _adopt_at: float = inf
    _leave_at: float = inf
    _stalled: Seconds = Seconds(-inf)  # when our own last stall ended

    def run(self) -> None:
        """Raises UserError when the socket cannot be had."""
        self._selector.register(_listen(self.path), selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda _: None)
        self._recover()
        self._leave_at = time.monotonic() + 10.0 if self.exit_with_agent else inf
        log.info("watchdog ready", extra={"socket": str(self.path)})
        while self._running:
            self.tick()
        until = time.monotonic() + LAST
        while self._busy() and not self.outdated and time.monotonic() < until:
            self.tick()
        self.path.unlink(missing_ok=True)

    def _busy(self) -> bool:
        return bool(self._pending) or any(ward.killed_at < inf for ward in self._wards)

    def stop(self) -> None:
        """From a signal handler or another thread."""
        self._running = False
        os.eventfd_write(self._wake, 1)

    def tick(self) -> None:
        asked = time.monotonic()
        due = max(asked, min(asked + 60.0, self._due(asked)))
        events = self._selector.select(due - asked)
        self._stalled = stall_end(self._stalled, Seconds(due), Seconds(time.monotonic()))
        for key, _ in events:
            key.data(key.fileobj)
        now = time.monotonic()
        for ward in list(self._wards):
            self._judge(ward, now)
        self._retry()
        if now >= self._adopt_at:
            self._adopt()
        if self._deserted() and now >= self._leave_at:
            self.stop()

    def _deserted(self) -> bool:
        return self.exit_with_agent and not (self._wards or self._pending) and self._adopt_at == inf

    def _due(self, now: float) -> float:
        """When something must be looked at."""
        due = [self._adopt_at, *self._pending.values()]
        if self._deserted():
            due.append(self._leave_at)
        for ward in self._wards:
            due.append(ward.killed_at + DEATH if not ward.forestalled else inf)
            if ward.deadline is not None:
                due += [ward.deadline if ward.spared is None else ward.spared, now + BEAT]
        return min(due)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        _, uid, _ = _peer(connection)
        if uid not in (0, os.geteuid()) or self._waiting >= MAX_WAITING:
            log.warning("connection refused", extra={"uid": uid})
            connection.close()
            return
        connection.setblocking(False)
        self._waiting += 1
        self._selector.register(connection, selectors.EVENT_READ, self._greet)

    def _greet(self, connection: socket.socket) -> None:
        """The first packet, with a pidfd of the process that connected."""
        self._waiting -= 1
        self._selector.unregister(connection)
        pid, _, _ = _peer(connection)
        try:
            packet, fds, _, _ = socket.recv_fds(connection, MAX_PACKET, 1)
        except OSError:
            connection.close()
            return
        if len(fds) != 1 or _process_of(fds[0]) != pid:
            log.warning("connection refused", extra={"pid": pid})
            for fd in fds:
                os.close(fd)
            connection.close()
            return
        ward = Ward(fds[0], pid, connection)
        self._wards.append(ward)
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._drain(ward))
        self._leave_at = inf
        log.info("agent connected", extra={"pid": pid})
        self._heed(ward, packet)

    def _drain(self, ward: Ward) -> None:
        """Read every packet that waits. An armed agent that has gone is treated like a late one."""
        while ward.connection is not None:
            try:
                packet = ward.connection.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if packet:
                self._heed(ward, packet)
            else:
                self._part(ward, "the agent went away with clocks locked")

    def _part(self, ward: Ward, why: str) -> None:
        """With an agent that is armed by killing it; with another by looking what the disk says."""
        if ward.deadline is not None:
            self._kill(ward, why)
            return
        self._forget(ward)
        try:
            self._recover()
        except UserError as error:
            log.error("state not read", extra={"why": error.message})

    def _heed(self, ward: Ward, packet: bytes) -> None:
        try:
            said = Said.read(packet)
        except (ValueError, TypeError, KeyError):
            self._part(ward, "the agent does not speak our language")
            return
        if ward.spared is not None:  # it lives, and frees them itself
            for uuid in ward.gpus:
                self._pending.pop(uuid, None)
        ward.deadline, ward.gpus, ward.spared = said.deadline, said.gpus, None
        answer = {"seq": said.seq, "why": self._hindrance(said.hold, ward.gpus)}
        if ward.connection is not None:
            with contextlib.suppress(OSError):  # a full or closed socket shows at the next read
                ward.connection.send(json.dumps(answer).encode())

    def _hindrance(self, hold: bool, gpus: Iterable[str]) -> str:
        """Take the driver up, or let it go; what would hinder a reset."""
        try:
            if not hold:
                self.driver.close()
                self._opened = False
                return ""
            self._open()
        except DeviceError as error:
            return f"the watchdog cannot open the driver: {error}"
        missing = set(gpus) - {gpu.uuid for gpu in self.driver.inventory()} if gpus else set()
        return f"the watchdog does not see {', '.join(sorted(missing))}" if missing else ""

    def _judge(self, ward: Ward, now: float) -> None:
        if ward.deadline is not None and now >= ward.deadline:
            self._drain(ward)
        if ward.deadline is not None:
            self._act(ward, verdict(ward.deadline, Seconds(time.monotonic()), self._stalled, ward.spared))
        if now >= ward.killed_at + DEATH and not ward.forestalled:
            log.error("agent does not die; resetting now and again after", extra={"gpus": sorted(ward.gpus)})
            ward.forestalled = True
            self._free(ward.gpus)

    def _act(self, ward: Ward, found: Verdict) -> None:
        if found is Verdict.OVER:
            self._kill(ward, "the agent missed its deadline")
        elif found is Verdict.SPARED and ward.spared is None:
            ward.spared = Seconds(self._stalled + MOMENT)
            log.warning("we stood still past a deadline: clocks first", extra={"gpus": sorted(ward.gpus)})
            self._free(ward.gpus)

    def _kill(self, ward: Ward, why: str) -> None:
        log.error("killing the agent", extra={"why": why, "gpus": sorted(ward.gpus)})
        with contextlib.suppress(ProcessLookupError, PermissionError):  # see DEATH
            signal.pidfd_send_signal(ward.pidfd, signal.SIGKILL)
        self._hang_up(ward)
        ward.deadline, ward.killed_at = None, time.monotonic()
        # A pidfd becomes readable when the whole process is gone.
        self._selector.register(ward.pidfd, selectors.EVENT_READ, lambda _: self._bury(ward))

    def _bury(self, ward: Ward) -> None:
        self._selector.unregister(ward.pidfd)
        self._free(ward.gpus)
        self._forget(ward)

    def _forget(self, ward: Ward) -> None:
        self._hang_up(ward)
        os.close(ward.pidfd)
        self._wards.remove(ward)
        self._leave_at = 0.0

    def _hang_up(self, ward: Ward) -> None:
        if ward.connection is not None:
            self._selector.unregister(ward.connection)
            ward.connection.close()
            ward.connection = None

    def _open(self) -> None:
        """Raises DeviceError. After an upgrade of the driver a new process must take over."""
        if self._opened:
            return
        try:
            self.driver.open()
        except Outdated:
            self.outdated = self._was_open
            self._running = self._running and not self.outdated
            raise
        self._opened = self._was_open = True

    def _free(self, gpus: Iterable[str]) -> None:
        self._pending.update(dict.fromkeys(gpus, 0.0))
        self._retry()

    def _retry(self) -> None:
        for uuid, due in list(self._pending.items()):
            if time.monotonic() >= due:
                self._reset(uuid)

    def _reset(self, uuid: str) -> None:
        try:
            self._open()
            self.restore(self.driver, uuid)
        except DeviceError as error:
            self._opened = self._opened and not isinstance(error, Broken)
            self._pending[uuid] = time.monotonic() + RETRY
            log.error("reset failed, trying again", extra={"gpu": uuid, "why": str(error)})
            return
        del self._pending[uuid]
        log.warning("clocks reset", extra={"gpu": uuid, "read_back": _read_back(self.driver, uuid)})

    def _recover(self) -> None:
        """What a dead agent left locked is freed now; a live one gets time to connect. Raises UserError."""
        locked = read(self.state_dir).locked
        if not locked:
            return
        pidfd = claimant(self.state_dir)
        if pidfd is None:
            log.warning("freeing clocks that a dead agent left", extra={"gpus": sorted(locked)})
            self._free(locked)
            return
        os.close(pidfd)
        self._adopt_at = time.monotonic() + ADOPT

    def _adopt(self) -> None:
        """A live agent that holds clocks and does not connect is nobody's: end it."""
        self._adopt_at = inf
        try:
            locked = read(self.state_dir).locked
        except UserError as error:
            log.error("state not read", extra={"why": error.message})
            return
        pidfd = claimant(self.state_dir) if locked else None
        if pidfd is None:
            self._free(locked)
            return
        pid = _process_of(pidfd)
        if any(ward.pid == pid for ward in self._wards):
            os.close(pidfd)
            return
        ward = Ward(pidfd, pid, None, gpus=locked)
        self._wards.append(ward)
        self._kill(ward, "the agent holds clocks and does not connect")


def _listen(path: Path) -> socket.socket:
    """Raises UserError."""
    try:
        listener = bound(path, socket.SOCK_SEQPACKET, "watchdog", "watchdog.socket")
    except OSError as error:
        raise UserError(
            f"cannot listen on {path}: {error.strerror or error}", "set 'watchdog.socket'"
        ) from error
    listener.listen(8)
    return listener


def _read_back(driver: Driver, uuid: str) -> str:
    try:
        return f"{driver.read(uuid).clock} MHz"
    except DeviceError as error:
        return str(error)


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of who connected."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def _process_of(pidfd: int) -> int:
    """The pid behind a pidfd, -1 when it is something else."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    return -1
