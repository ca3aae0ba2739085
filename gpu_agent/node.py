"""Shell: the GPUs of this node under one lease: what a request does to them, and what its end does.

Theory of operation. Every change happens under one lock, `changed`, on which the dead-man thread sleeps. A
sync renews the lease, then arms the watchdog, and only then lowers anything; if the watchdog does not
confirm, or the disk does not take the list of locked GPUs, clocks go up instead. GPUs of one group (a
tensor-parallel instance) go down together or not at all. When the lease runs out everything goes back to the
site's state, after a jitter drawn for each lease.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from math import inf

from gpu_agent import lease as leases
from gpu_agent.caps import Cap, CapKeeper, CapRefused
from gpu_agent.ceilings import level
from gpu_agent.device import Broken, DeviceError, Driver, Outdated
from gpu_agent.groups import Groups, regrouped
from gpu_agent.guard import Event
from gpu_agent.lease import Grace, Granted, Lease, Refused
from gpu_agent.ledger import Ledger, NoLease
from gpu_agent.managed import Cause, Json, ManagedGpu
from gpu_agent.state_file import StateFile
from gpu_agent.watchdog_link import Link
from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import BoostRequest, CapsRequest, GpuInfo, GpuState, SyncRequest

log = logging.getLogger(__name__)
RETRY = Seconds(0.2)  # between two tries to restore a GPU whose write failed


class UnknownGpu(Exception):
    """A request names GPUs this agent does not have."""


class Node:
    def __init__(
        self,
        driver: Driver,
        gpus: Sequence[ManagedGpu],
        link: Link,
        memory: StateFile | None,
        grace: Grace,
        rng: Callable[[], float],
        clock: Callable[[], Seconds],
    ) -> None:
        """`memory` None: this agent only watches; its leases set nothing. `rng`: uniform in [0, 1)."""
        self.gpus = {gpu.uuid: gpu for gpu in gpus}
        self.changed = threading.Condition(threading.RLock())
        self.lease: Lease | None = None
        self.expirations = 0
        self.released = False
        self.outdated = False  # the driver was upgraded: this process must make way for a new one
        self.caps = CapKeeper(driver, [gpu.info for gpu in gpus], memory)
        self._driver = driver
        self._link = link
        self._ledger = Ledger(memory)
        self._grace = grace
        self._rng = rng
        self._clock = clock
        self._jitter = Seconds(0.0)
        self._groups = Groups()
        self._grouped: list[list[ManagedGpu]] = []  # the same, looked up
        self._standing: frozenset[str] = frozenset()  # GPUs that watchdog and disk know of
        self._wakes_at = inf
        self._retry_at = -inf
        self._observed_at = -inf
        self._closed = False

    @property
    def restarts(self) -> int:
        return self._ledger.restarts

    def sync(self, request: SyncRequest, who: str, received: Seconds) -> Lease | Refused:
        """Raises UnknownGpu, NoLease. A refused request still raises what it asks to raise."""
        cause = Cause(f"{who}/{request.holder}", request.reason)
        with self.changed:
            self._known(request.targets)
            if self._closed:
                raise NoLease("the agent stops")
            ttl, token = Seconds(request.ttl_s), self._ledger.token + 1
            answer = leases.ask(self.lease, request.holder, request.lease, ttl, received, token)
            if isinstance(answer, Refused):
                self._raise(request, cause)
                return answer
            if answer.fresh:
                self._begin(answer, cause)
            self.lease = answer.lease
            if not ttl:
                self._end(cause)
                return answer.lease
            self._aim(request)
            self._actuate(cause, frozenset() if request.groups else frozenset(request.targets))
            self._wake_by(Seconds(answer.lease.expires + self._jitter))
            return answer.lease

    def boost(self, request: BoostRequest, who: str, received: Seconds) -> None:
        """Raises UnknownGpu."""
        with self.changed:
            self._known(request.floors)
            until = Seconds(received + request.duration_s)
            cause = Cause(f"{who}/{request.holder}", f"boost: {request.reason}")
            for uuid, floor in request.floors.items():
                gpu = self.gpus[uuid]
                gpu.boost(MegaHertz(floor), until, received)
                self._write(gpu, cause, only_up=True)

    def cap(self, request: CapsRequest, who: str) -> dict[str, Cap]:
        """Raises UnknownGpu, CapRefused."""
        with self.changed:
            self._known(request.caps)
            if self.released:
                raise CapRefused("the driver is handed over")
            wanted = {uuid: None if cap is None else Watts(cap) for uuid, cap in request.caps.items()}
            return self.caps.ask(wanted, request.epoch, Cause(f"{who}/{request.holder}", request.reason))

    def release(self, resume: bool, cause: Cause) -> bool:
        """Hand the driver over, or take it up again. True while released. Raises DeviceError."""
        with self.changed:
            if resume and self.released:
                self._open()
                self._note_all(Event.RESUMED)
                self.released = False
                self._link.arm(None, ())
            elif not resume and not self.released:
                self._restore_all(cause)
                self.lease = None
                self._note_all(Event.RELEASED)
                self.released = True
                self._link.arm(None, (), hold=False)
                self._driver.close()
            return self.released

    def fail_up(self, why: str) -> None:
        """Every ceiling goes, the lease stays."""
        with self.changed:
            held = [gpu for gpu in self.gpus.values() if gpu.held]
            if held:
                log.error("clocks go up", extra={"why": why})
            for gpu in held:
                gpu.fail_up(Cause("agent", why))
            self._link.disarm()

    def shut(self, why: str) -> None:
        """Last act: restore, and tell the watchdog that there is nothing left to guard."""
        with self.changed:
            if not self.released:
                self._restore_all(Cause("agent", why))
            self.lease, self._closed = None, True
            if not self._held():
                self._ledger.forget(self.gpus)
                self._link.disarm()
                self._link.close()  # still armed otherwise: then the watchdog takes over when we are gone

    def expire(self) -> float:
        """Restore what must be restored by now; when to look again. The dead-man thread's only call."""
        with self.changed:
            now = self._clock()
            over = self.lease.expires + self._jitter if self.lease is not None else inf
            if now >= over and self.lease is not None:
                over = inf
                self.expirations += 1
                self._end(Cause("agent", f"lease of {self.lease.holder} ran out"))
            self._wakes_at = min(over, self._retry(now))
            return self._wakes_at

    def states(self) -> tuple[GpuState, ...]:
        with self.changed:
            return tuple(gpu.state() for gpu in self.gpus.values())

    def pictures(self) -> list[Json]:
        """The states, as plain values."""
        with self.changed:
            return [gpu.picture() for gpu in self.gpus.values()]

    def infos(self) -> tuple[GpuInfo, ...]:
        with self.changed:
            caps = self.caps.standing
            return tuple(gpu.wire_info(caps.get(gpu.uuid)) for gpu in self.gpus.values())

    def observe(self, fresh: Seconds = Seconds(0.0)) -> None:
        """Read every GPU, unless that was done within `fresh`. A library that broke is opened again, once."""
        with self.changed:
            if self.released or self._clock() - self._observed_at < fresh:
                return
            self._observed_at = self._clock()
            for attempt in (1, 2):
                try:
                    for gpu in self.gpus.values():
                        gpu.observe()
                    return
                except Broken as error:
                    self._reopen(error, last=attempt == 2)

    @property
    def integrates(self) -> bool:
        """Whether some GPU's energy is made from readings of power, so that it must be read often."""
        return any(gpu.integrates for gpu in self.gpus.values())

    def look(self) -> bool:
        """See whether clocks that were lowered have arrived; True while some are on their way: come again."""
        with self.changed:
            moving = [gpu for gpu in self.gpus.values() if gpu.arriving]
            for gpu in moving:
                gpu.look()
            return any(gpu.arriving for gpu in moving)

    def tidy(self) -> None:
        """Now and then, from a thread that may wait: the disk forgets locks that are gone."""
        with self.changed:
            if self._held() and self._link.gone():
                self.fail_up("the watchdog has gone")
            if not self._ledger.watches_only and not self.released and self._link.gone():
                self._link.arm(None, ())
            if self.lease is None and not self._held():
                self._ledger.forget(self.gpus)
            if not self.released:
                self.caps.uphold(Cause("agent", "found changed"))

    def guarded(self) -> bool:
        """Whether the watchdog stands ready; connects to it if need be."""
        with self.changed:
            if self._ledger.watches_only or self.lease is not None:
                return True
            return self._link.arm(None, ())

    def recover(self) -> None:
        """At start: bring left-over locks, and the site's own lock, to the site's state."""
        if self._ledger.watches_only:
            return
        left = self._ledger.locked
        if left:
            log.warning("clock locks of an earlier run", extra={"gpus": sorted(left)})
        with self.changed:
            for gpu in self.gpus.values():
                if gpu.why_not_writable is None and (gpu.uuid in left or gpu.limits.site_lock is not None):
                    gpu.fail_up(Cause("agent", "start"))
            self._ledger.restarted()
            if not self._held():
                self._ledger.forget(self.gpus)

    def _known(self, uuids: Iterable[str]) -> None:
        unknown = sorted(set(uuids) - self.gpus.keys())
        if unknown:
            raise UnknownGpu(f"no such GPU here: {', '.join(unknown)}")

    def _begin(self, granted: Granted, cause: Cause) -> None:
        """A new lease: its token goes to disk first; what the one before wanted is gone."""
        self._ledger.grant(granted.lease.token)
        self._jitter = Seconds(self._rng() * self._grace.jitter)
        self._groups, self._grouped = Groups(), []
        for gpu in self.gpus.values():
            gpu.release_target(cause)

    def _end(self, cause: Cause) -> None:
        """The lease is over, and so is what it wanted."""
        self.lease = None
        self._restore_all(cause)
        if not self._held():
            self._link.disarm()

    def _aim(self, request: SyncRequest) -> None:
        for uuid, target in request.targets.items():
            self.gpus[uuid].aim(None if target is None else MegaHertz(target))
        groups = regrouped(self._groups, frozenset(request.targets), request.groups)
        if groups is not self._groups:
            self._groups = groups
            self._grouped = [[self.gpus[uuid] for uuid in group] for group in groups.sets]

    def _raise(self, request: SyncRequest, cause: Cause) -> None:
        """Up is open to everybody, lease or not."""
        for uuid, asked in request.targets.items():
            gpu, target = self.gpus[uuid], None if asked is None else MegaHertz(asked)
            current = gpu.plan.target
            if current is not None and (target is None or target > current):
                gpu.aim(target)
                self._write(gpu, cause, only_up=True)

    def _actuate(self, cause: Cause, atomic: frozenset[str]) -> None:
        """Bring every GPU to what is wanted. A failed write among `atomic` takes all of those up."""
        groups = self._grouped
        if self._standing and all(gpu.steady for group in groups for gpu in group):
            self._guarded(self._standing)
            return
        for group in groups:
            if any(gpu.plan.target is not None and not gpu.accepts for gpu in group):
                for gpu in group:
                    gpu.release_target(Cause(cause.who, "a GPU of the group cannot follow"))
        held = self._held() | {gpu.uuid for group in groups for gpu in group if gpu.plan.target is not None}
        if not held:
            self._standing = frozenset()
            self._link.disarm()
            return
        if not self._guarded(frozenset(held)):
            return
        failed = {gpu.uuid for group in groups if not self._apply(group, cause) for gpu in group}
        if self._held() != held:  # some went up: next time there are fewer to guard
            self._standing = frozenset()
        if failed & atomic:
            for uuid in atomic:
                self.gpus[uuid].release_target(Cause(cause.who, "a GPU of the request failed"))

    def _guarded(self, held: frozenset[str]) -> bool:
        """Before anything is lowered: the watchdog has the deadline, the disk has the names."""
        assert self.lease is not None
        deadline = Seconds(self.lease.expires + self._jitter + self._grace.watchdog)
        renewed = held is self._standing and self._link.renew(deadline, held)
        problem = "" if renewed or self._link.arm(deadline, held) else self._link.problem
        if not problem:
            try:
                self._ledger.lock(held)
            except NoLease as error:
                problem = str(error)
        if not problem and self._clock() >= self.lease.expires:
            problem = "the lease ran out while it was guarded"
        if problem or held is not self._standing:
            self._tell(problem, held)
        return not problem

    def _tell(self, problem: str, held: frozenset[str]) -> None:
        """Note what is guarded now; on a problem nothing is, and all goes up."""
        self._standing = frozenset() if problem else held
        if problem:
            self.fail_up(problem)
        for gpu in self.gpus.values():
            gpu.hindrance = problem if gpu.uuid in held else ""
            if problem:
                gpu.release_target(Cause("agent", problem))

    def _apply(self, group: Sequence[ManagedGpu], cause: Cause) -> bool:
        """Up at once; down all together or, if one may not yet, not at all. One failure takes all up."""
        now = self._clock()
        only_up = len(group) > 1 and any(gpu.waits(now) for gpu in group)
        if all([self._write(gpu, cause, only_up) for gpu in group]):
            return True
        for gpu in group:
            gpu.release_target(Cause(cause.who, "a GPU of the group failed"))
        return False

    def _write(self, gpu: ManagedGpu, cause: Cause, only_up: bool) -> bool:
        due = gpu.due(self._clock())
        if due is None or gpu.why_not_writable is not None or self.released:
            return True
        (ceiling,) = due
        if only_up and level(ceiling) < level(gpu.plan.applied):
            return True
        return gpu.apply(ceiling, cause)

    def _restore_all(self, cause: Cause) -> None:
        for gpu in self.gpus.values():
            gpu.release_target(cause)

    def _retry(self, now: Seconds) -> float:
        unsure = [gpu for gpu in self.gpus.values() if gpu.plan.unsure and gpu.why_not_writable is None]
        if not unsure or self.released:
            return inf
        if now >= self._retry_at:
            self._retry_at = now + RETRY
            try:
                self._open()
            except DeviceError as error:
                log.error("driver does not open", extra={"why": str(error)})
            for gpu in unsure:
                gpu.fail_up(Cause("agent", "an earlier write failed"))
        return self._retry_at

    def _reopen(self, error: Broken, last: bool) -> None:
        if not last:
            log.warning("opening the driver again", extra={"why": str(error)})
            try:
                self._open()
                self.fail_up("the driver was opened again: what holds is unknown")
                return
            except DeviceError as again:
                error = Broken(str(again))
        for gpu in self.gpus.values():
            gpu.fault = str(error)

    def _open(self) -> None:
        """Raises DeviceError."""
        try:
            self._driver.open()
        except Outdated:
            self.outdated = True
            raise

    def _held(self) -> set[str]:
        return {gpu.uuid for gpu in self.gpus.values() if gpu.held}

    def _note_all(self, event: Event) -> None:
        for gpu in self.gpus.values():
            gpu.note(event, "the driver is handed over" if event is Event.RELEASED else "")

    def _wake_by(self, when: Seconds) -> None:
        if when < self._wakes_at:
            self.changed.notify_all()
