"""Shell: one GPU under management: its plan, its guard, its meter, and every write to it."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from gpu_agent import arrival, ceilings, energy, guard, site_state, thermal
from gpu_agent.ceilings import Ceiling, Limits, Plan, level
from gpu_agent.device import Broken, Denied, DeviceError, Driver, Inventory, Reading, Unsupported
from gpu_agent.guard import Event, Guard, State
from gpu_agent.processes import foreign
from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import GpuInfo, GpuState

log = logging.getLogger(__name__)
audit = logging.getLogger("joulegate.audit")
Json = dict[str, Any]
NOTHING_READ = Reading(MegaHertz(0), Watts(0.0), None, 0.0, (), ())


@dataclass(frozen=True, slots=True)
class Policy:
    """What agent.yaml says about every GPU alike."""

    allow_writes: bool
    tolerance: MegaHertz
    settle: Seconds
    pause: Seconds
    own_processes: Collection[str]


@dataclass(frozen=True, slots=True)
class Cause:
    """For the audit line of a change: who wanted it, and why."""

    who: str
    why: str


class ManagedGpu:
    """`apply` and `fail_up` are the only ways to a write. Used under the node's lock."""

    def __init__(
        self, driver: Driver, info: Inventory, limits: Limits, policy: Policy, clock: Callable[[], Seconds]
    ) -> None:
        self.info = info
        self.uuid = info.uuid
        self.limits = limits
        self.plan = Plan(applied=limits.site_lock)
        self.guard = Guard()
        self.fault: str | None = None  # of the last read or write
        self.hindrance = ""  # why the node does not lower it although asked
        self.changes = {"up": 0, "down": 0}
        self.write_seconds: Seconds | None = None  # how long the last write took
        self._driver = driver
        self._policy = policy
        self._clock = clock
        self._meter = energy.Meter()
        self._reading: Reading | None = None
        self._obstacle = info.obstacle
        self._foreign: str | None = None
        self._heat: thermal.Track | None = None
        self._arrivals = arrival.Arrivals()
        self._content: Plan | None = None  # a plan that has nothing to write, whatever the time is

    @property
    def why_not_writable(self) -> str | None:
        if not self._policy.allow_writes:
            return "allow_writes is false: this agent only watches"
        return self._obstacle or self._foreign

    @property
    def accepts(self) -> bool:
        """Whether a ceiling may be asked of it now."""
        return self.why_not_writable is None and self.guard.accepts and not self.plan.unsure

    @property
    def held(self) -> bool:
        """Whether a ceiling other than the site's own may stand."""
        return self.plan.unsure or self.plan.applied != self.limits.site_lock

    @property
    def steady(self) -> bool:
        """Whether it has nothing to write, however much time passes, and follows what it is told."""
        return self.plan is self._content and (self.plan.target is None or self.accepts)

    def aim(self, target: Ceiling) -> None:
        if target != self.plan.target:
            self.plan = replace(self.plan, target=target)

    def boost(self, floor: MegaHertz, until: Seconds, now: Seconds) -> None:
        self.plan = ceilings.boosted(self.plan, floor, until, now)

    def due(self, now: Seconds) -> tuple[Ceiling] | None:
        """The ceiling to write now, if any."""
        if self.plan is self._content:
            return None
        due = ceilings.due(self.plan, self.limits, now, self.guard.may_lower)
        if due is None and ceilings.content(self.plan, self.limits):
            self._content = self.plan
        return due

    def waits(self, now: Seconds) -> bool:
        """Whether it wants to go down and may not yet."""
        wanted = ceilings.wanted(self.plan, self.limits, now)
        return level(wanted) < level(self.plan.applied) and self.due(now) is None

    def apply(self, ceiling: Ceiling, cause: Cause) -> bool:
        """Write it. False when that failed: then the GPU has failed up as far as it could."""
        before = self.plan.applied
        try:
            if level(ceiling) < level(before):
                self._watch(ceiling)
            self._write(ceiling)
        except DeviceError as error:
            self._refused(error)
            if self.held or not isinstance(error, Denied | Unsupported):  # a refusal has changed nothing
                self.fail_up(Cause("agent", f"write failed: {error}"))
            return False
        self.changes["up" if level(ceiling) > level(before) else "down"] += 1
        self._audit(before, ceiling, cause)
        return True

    def fail_up(self, cause: Cause) -> None:
        """Give up every target and go back to the site's state; where that fails the GPU is `unsure`."""
        before, was_held = self.plan.applied, self.held
        self.plan = ceilings.failed(self.plan)
        self._restore(before, was_held, cause)

    def release_target(self, cause: Cause) -> None:
        """Its lease is over: back to the site's state if it is not there. Boosts end by themselves."""
        before, was_held = self.plan.applied, self.held
        self.plan = replace(self.plan, target=None)
        if was_held:
            self._restore(before, was_held, cause)

    def note(self, event: Event, why: str = "") -> None:
        """Step the guard."""
        before = self.guard.state
        self.guard = guard.step(self.guard, event, self._clock(), why)
        if self.guard.state is not before:
            log.warning(
                "guard",
                extra={"gpu": self.uuid, "from": before.value, "to": self.guard.state.value, "why": why},
            )

    def observe(self) -> None:
        """Read it once, count its energy, and judge whether it obeys. Raises Broken, nothing else."""
        if self.guard.state is State.RELEASED:
            return
        try:
            reading = self._driver.read(self.uuid)
        except Broken:
            raise
        except DeviceError as error:
            self.fault = str(error)
            return
        now = self._clock()
        self.fault, self._reading = None, reading
        self._meter = energy.read(self._meter, reading, now)
        self._heat = thermal.follow(self._heat, reading.celsius, self._meter.total, now)
        self._foreign = foreign(reading.processes, self._policy.own_processes)
        if self._foreign and self.held:
            self.fail_up(Cause("agent", self._foreign))
        self._judge(reading, now)

    @property
    def arriving(self) -> bool:
        """Whether a clock that was lowered is on its way, as far as anybody measures."""
        return self._arrivals.watch is not None

    @property
    def actuation(self) -> Seconds | None:
        """From the call that lowers until the clock is there; None until measured."""
        return self._arrivals.slowest

    def look(self) -> None:
        """Whether a clock that was lowered has arrived."""
        try:
            clock = self._driver.clock(self.uuid)
        except DeviceError:
            self._arrivals = replace(self._arrivals, watch=None)  # `observe` will say what is wrong
            return
        self._arrivals = arrival.looked(self._arrivals, clock, self._policy.tolerance, self._clock())

    @property
    def integrates(self) -> bool:
        """Whether its energy is made from readings of power."""
        return self._meter.source == "integrated"

    def forecast(self, ahead: Seconds) -> float | None:
        """Celsius after `ahead` at the present draw; None until enough has been seen."""
        if self._heat is None or self._reading is None or self._heat.model.steps < thermal.ENOUGH:
            return None
        return self._heat.model.ahead(self._reading.celsius, self._reading.watts, ahead)

    def state(self) -> GpuState:
        """For the wire. While `fault` is set, the figures are the last ones read, or zeros."""
        return GpuState(**self.picture())

    def picture(self) -> Json:
        """The same as plain values: ten times a second, checking our own figures costs what reading does."""
        reading, meter = self._reading or NOTHING_READ, self._meter
        return {
            "uuid": self.uuid,
            "index": self.info.index,
            "name": self.info.name,
            "clock_mhz": reading.clock,
            "ceiling_mhz": self.plan.applied,
            "power_w": float(reading.watts),
            "energy_j": float(meter.total),
            "energy_source": meter.source,
            "temperature_c": reading.celsius,
            "reasons": reading.reasons,
            "processes": reading.processes,
            "fault": self._complaint(),
            "actuation_s": self._arrivals.slowest,
            "observed_at_s": float(meter.at or 0.0),
        }

    def wire_info(self, cap: Watts | None) -> GpuInfo:
        """`cap`: of a budget."""
        why = self.why_not_writable
        return GpuInfo(
            uuid=self.uuid,
            index=self.info.index,
            name=self.info.name,
            pci=self.info.pci,
            clocks_mhz=tuple(self.info.clocks),
            allowed_mhz=(self.limits.lowest, self.limits.highest),
            power_limit_w=float(self.info.cap_range[1]) if self.info.cap_range else None,
            cap_range_w=self.info.cap_range,
            cap_w=cap,
            writable=why is None,
            why_not_writable=why,
        )

    def _complaint(self) -> str | None:
        if self.fault:
            return self.fault
        if self.plan.unsure:
            return "the last write failed; what holds is unknown"
        if self.guard.state in (State.SAFE, State.RELEASED):
            return f"{self.guard.state.value}: {self.guard.why}"
        return self.hindrance or None

    def _judge(self, reading: Reading, now: Seconds) -> None:
        if self.guard.state is State.SAFE and now - self.guard.since >= self._policy.pause:
            self.note(Event.RESTED)
        if now - self.plan.changed < self._policy.settle or self.why_not_writable is not None:
            return
        ceiling = self.plan.applied
        event = guard.judge(ceiling, reading, self._policy.tolerance)
        before = self.guard.state
        if event is Event.OBEYS and before is State.NORMAL:
            return
        if event is Event.OBEYS:
            self.note(event)
            return
        self.note(event, f"runs at {reading.clock} MHz under a ceiling of {ceiling}; {reading.reasons}")
        if event is not Event.ABOVE:
            return
        if self.guard.state is State.SAFE:
            if before is not State.SAFE:
                self.fail_up(Cause("guard", self.guard.why))
        else:
            self.apply(ceiling, Cause("guard", "tell it again"))

    def _restore(self, before: Ceiling, was_held: bool, cause: Cause) -> None:
        try:
            started = self._clock()
            site_state.restore(self._driver, self.uuid, self.limits)
        except DeviceError as error:
            self.plan = replace(self.plan, unsure=True)
            self.fault = str(error)
            log.error("restore failed", extra={"gpu": self.uuid, "why": str(error)})
            return
        self.write_seconds = Seconds(self._clock() - started)
        self.plan = ceilings.written(self.plan, self.limits.site_lock, self._clock())
        if was_held:
            self.changes["up"] += 1
            self._audit(before, self.limits.site_lock, cause)

    def _watch(self, ceiling: Ceiling) -> None:
        """Measure how long this lowering takes, now and then. Raises DeviceError."""
        now = self._clock()
        if now >= self._arrivals.next_at:
            clock = self._driver.clock(self.uuid)
            self._arrivals = arrival.watched(self._arrivals, clock, ceiling, self._policy.tolerance, now)

    def _write(self, ceiling: Ceiling) -> None:
        started = self._clock()
        if ceiling is None:
            self._driver.reset(self.uuid)
        else:
            self._driver.lock(self.uuid, self.limits.floor_clock, ceiling)
        self.write_seconds = Seconds(self._clock() - started)
        self.plan = ceilings.written(self.plan, ceiling, self._clock())

    def _refused(self, error: DeviceError) -> None:
        """Learn from a refused write whether it is worth trying again."""
        self.fault = str(error)
        self.plan = replace(self.plan, target=None, boosts=())
        if isinstance(error, Denied | Unsupported):
            self._obstacle = str(error)
        self.note(Event.FAILED, str(error))

    def _audit(self, before: Ceiling, after: Ceiling, cause: Cause) -> None:
        audit.info(
            "clock ceiling",
            extra={"gpu": self.uuid, "before": before, "after": after, "who": cause.who, "why": cause.why},
        )
