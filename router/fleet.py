"""Pure: the instances, and what their health allows.

Health moves by signals only, in the table below; it answers one question: may a request be sent there?

    UNKNOWN    just configured: usable, so that a gateway starts serving before its first probe
    UP         usable
    SUSPECT    one failure: usable only when nothing better is
    DOWN       not usable; the prober keeps asking
    PROBATION  the probe passed again: one request at a time until one succeeds (half-open circuit)

Only failures of the instance count: connect, reset, timeout, 5xx. A client's 4xx never does, and a full queue
(429, vLLM's queue-limit 503) means "the next one", not "unhealthy".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from joulegate.units import Seconds
from router.engine_metrics import Gauges
from router.ports import Endpoint

BUSY_PAUSE = Seconds(0.5)  # how long an instance that said "busy" is passed over


class Health(Enum):
    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"
    PROBATION = "probation"

    __hash__ = object.__hash__  # Enum's own is Python, and every request asks for it


class Signal(Enum):
    PROBE_PASSED = "probe passed"
    PROBE_FAILED = "probe failed"
    REQUEST_SUCCEEDED = "request succeeded"
    REQUEST_FAILED = "request failed"

    __hash__ = object.__hash__  # Enum's own is Python, and every request asks for it


H, S = Health, Signal
PROBES = frozenset({S.PROBE_PASSED, S.PROBE_FAILED})
TRANSITIONS: dict[tuple[Health, Signal], Health] = {
    (H.UNKNOWN, S.PROBE_PASSED): H.UP,
    (H.UNKNOWN, S.PROBE_FAILED): H.DOWN,
    (H.UNKNOWN, S.REQUEST_SUCCEEDED): H.UP,
    (H.UNKNOWN, S.REQUEST_FAILED): H.SUSPECT,
    (H.UP, S.PROBE_FAILED): H.SUSPECT,
    (H.UP, S.REQUEST_FAILED): H.SUSPECT,
    (H.SUSPECT, S.PROBE_PASSED): H.UP,
    (H.SUSPECT, S.PROBE_FAILED): H.DOWN,
    (H.SUSPECT, S.REQUEST_SUCCEEDED): H.UP,
    (H.SUSPECT, S.REQUEST_FAILED): H.DOWN,
    (H.DOWN, S.PROBE_PASSED): H.PROBATION,
    (H.PROBATION, S.PROBE_FAILED): H.DOWN,
    (H.PROBATION, S.REQUEST_SUCCEEDED): H.UP,
    (H.PROBATION, S.REQUEST_FAILED): H.DOWN,
}


def step(health: Health, signal: Signal) -> Health:
    """The next health; a signal the table does not name changes nothing."""
    return TRANSITIONS.get((health, signal), health)


def _nobody() -> None:
    """Who is told where nobody probes."""


@dataclass(slots=True)
class InstanceStatus:
    """What is known of one instance apart from its load. Mutated by the prober and by request outcomes."""

    endpoint: Endpoint
    health: Health = Health.UNKNOWN
    changed: Seconds = Seconds(float("-inf"))
    draining: bool = False
    asleep: bool = False
    fenced: str = ""  # why the plan keeps requests away from it
    misfit: str = ""  # "serves X, not Y"; "": it serves its model, or does not say what
    doubted: bool = False  # it did not know the model of a request, or is another process
    ask: Callable[[], None] = _nobody  # told of a doubt: who finds out what it serves
    context: int | None = None  # tokens that its model takes, prompt and answer; None: it does not say
    comes_back: bool = False  # though it takes none now, the plan can have it back: requests may wait for it
    busy_until: Seconds = Seconds(float("-inf"))
    gauges: Gauges = field(default_factory=Gauges)
    gauges_at: Seconds = Seconds(float("-inf"))
    running_elsewhere: int = 0  # sequences of others, when its gauges were read
    waiting_elsewhere: int = 0
    idle_at: Seconds = Seconds(float("-inf"))  # when it was asked that said last that it has nothing to do
    problem: str = ""
    silent: bool = False  # to the last probe

    def signal(self, signal: Signal, now: Seconds, problem: str = "") -> bool:
        """Apply a signal; True when health changed."""
        after = step(self.health, signal)
        if signal in PROBES:
            self.silent = signal is Signal.PROBE_FAILED
        if problem:
            self.problem = problem
        if after is self.health:
            return False
        self.health, self.changed = after, now
        if after is Health.UP:
            self.problem = ""
        return True

    def may_take(self, in_flight: int, now: Seconds) -> bool:
        """Whether one more request may go there now."""
        if self.draining or self.asleep or self.fenced or self.misfit:
            return False
        if self.health is Health.DOWN or now < self.busy_until:
            return False
        return in_flight == 0 or self.health is not Health.PROBATION

    @property
    def is_dead(self) -> bool:
        """Nothing is heard of it: it is down, and not because of what requests met there."""
        return self.silent and self.health is Health.DOWN

    def answered(self, now: Seconds) -> None:
        """It served somebody: whatever was thought of it before."""
        self.asleep = False
        self.signal(Signal.PROBE_PASSED, now)
        self.signal(Signal.REQUEST_SUCCEEDED, now)

    def doubt(self) -> None:
        """It may serve another model by now."""
        self.doubted = True
        self.ask()

    def why_not(self, now: Seconds) -> str:
        if self.draining:
            return "draining"
        if self.fenced:
            return self.fenced
        if self.asleep:
            return "asleep"
        if self.misfit and self.health is not Health.DOWN:
            return self.misfit
        if now < self.busy_until:
            return "busy"
        return f"{self.health.value}: {self.problem}" if self.health is Health.DOWN else ""
