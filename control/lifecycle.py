"""Pure: the life of an instance that is stopped and started, as a state table.

Theory of operation (papers §10.5). An instance is fenced (no new requests), drained (until nobody has a
request there and its own gauges say so), stopped, and seen to have stopped; it is started, seen to run, asked
for one token, and only then unfenced. Where it stands is looked at anew every time (level-triggered): a
gateway that starts in the middle of a transition begins with what it sees.

    UNSEEN    just configured: used as its health allows, until it is known whether it runs
    SERVING   in rotation
    DRAINING  fenced; what it has goes on to its end
    STOPPING  told to stop
    STOPPED   seen to have stopped
    STARTING  told to start
    CHECKING  seen to run; fenced until it has answered
    FAILED    it was tried often enough; fenced and left alone for a while

What fails is tried again later, each time after twice as long, and given up after `tries` in a row. Raising
is always allowed: a draining instance that is wanted goes back at once, and no patience holds a start up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from joulegate.units import Seconds

LONG_AGO = Seconds(float("-inf"))


class Phase(Enum):
    UNSEEN = "unseen"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    STARTING = "starting"
    CHECKING = "checking"
    FAILED = "failed"


class Seen(Enum):
    """What the way it is scaled by says of an instance."""

    RUNNING = "running"
    STOPPED = "stopped"
    UNKNOWN = "unknown"  # it does not answer, or is on its way


class Act(Enum):
    """What the table asks for. The first three take a while and end well or not."""

    STOP = "stop"
    START = "start"
    CHECK = "check"


class Event(Enum):
    SEEN_RUNNING = "seen running"
    SEEN_STOPPED = "seen stopped"
    WANTED = "wanted"
    UNWANTED = "unwanted"
    EMPTY = "empty"
    TOO_LONG = "too long"
    DONE = "done"
    BROKE = "broke"
    HOPELESS = "hopeless"
    AGAIN = "again"


P, E = Phase, Event
TABLE: Mapping[tuple[Phase, Event], tuple[Phase, Act | None]] = {
    (P.UNSEEN, E.SEEN_RUNNING): (P.SERVING, None),
    (P.UNSEEN, E.SEEN_STOPPED): (P.STOPPED, None),
    (P.SERVING, E.SEEN_STOPPED): (P.STOPPED, None),
    (P.SERVING, E.UNWANTED): (P.DRAINING, None),
    (P.DRAINING, E.WANTED): (P.SERVING, None),
    (P.DRAINING, E.SEEN_STOPPED): (P.STOPPED, None),
    (P.DRAINING, E.EMPTY): (P.STOPPING, Act.STOP),
    (P.DRAINING, E.TOO_LONG): (P.SERVING, None),
    (P.STOPPING, E.DONE): (P.STOPPED, None),
    (P.STOPPING, E.BROKE): (P.CHECKING, Act.CHECK),  # whatever became of it, it may still serve
    (P.STOPPED, E.HOPELESS): (P.FAILED, None),
    (P.STOPPED, E.SEEN_RUNNING): (P.CHECKING, Act.CHECK),
    (P.STOPPED, E.WANTED): (P.STARTING, Act.START),
    (P.STARTING, E.DONE): (P.CHECKING, Act.CHECK),
    (P.STARTING, E.BROKE): (P.STOPPED, None),
    (P.CHECKING, E.DONE): (P.SERVING, None),
    (P.CHECKING, E.BROKE): (P.STOPPED, None),
    (P.FAILED, E.SEEN_RUNNING): (P.CHECKING, Act.CHECK),
    (P.FAILED, E.AGAIN): (P.STOPPED, None),
}
# What is looked for in each phase, the first that is true counts.
HEARD: Mapping[Phase, tuple[Event, ...]] = {
    P.UNSEEN: (E.SEEN_RUNNING, E.SEEN_STOPPED),
    P.SERVING: (E.SEEN_STOPPED, E.UNWANTED),
    P.DRAINING: (E.SEEN_STOPPED, E.WANTED, E.EMPTY, E.TOO_LONG),
    P.STOPPING: (E.DONE, E.BROKE),
    P.STOPPED: (E.HOPELESS, E.SEEN_RUNNING, E.WANTED),
    P.STARTING: (E.DONE, E.BROKE),
    P.CHECKING: (E.DONE, E.BROKE),
    P.FAILED: (E.SEEN_RUNNING, E.AGAIN),
}
FAILURES: Mapping[tuple[Phase, Event], Act] = {
    (P.DRAINING, E.TOO_LONG): Act.STOP,
    (P.STOPPING, E.BROKE): Act.STOP,
    (P.STARTING, E.BROKE): Act.START,
    (P.CHECKING, E.BROKE): Act.CHECK,
}
FENCED = frozenset(Phase) - {P.UNSEEN, P.SERVING}
MOVING = frozenset({P.DRAINING, P.STOPPING, P.STARTING, P.CHECKING})
COMES_BACK = MOVING | {P.STOPPED}  # a request may wait for it


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, how often."""

    drain: Seconds = Seconds(300.0)
    tries: int = 3
    back_off: Seconds = Seconds(10.0)
    given_up: Seconds = Seconds(1800.0)


@dataclass(frozen=True, slots=True)
class Life:
    """Where one instance stands. Times are one monotonic clock's."""

    phase: Phase = Phase.UNSEEN
    since: Seconds = LONG_AGO
    failures: int = 0  # in a row
    not_before: Seconds = LONG_AGO  # the next try
    failed: Act | None = None  # what failed last
    problem: str = ""  # of that

    @property
    def fenced(self) -> bool:
        return self.phase in FENCED

    def given_up(self, patience: Patience, now: Seconds) -> bool:
        """Whether it is left as it is for now, stopped or not."""
        return self.failures >= patience.tries and now < self.not_before


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one instance now."""

    wanted: bool
    seen: Seen
    may_move: bool = True  # no other transition stands in its way
    empty: bool = False  # nobody has a request there
    done: bool | None = None  # how the act ended; None: it goes on, or there is none
    problem: str = ""


def step(life: Life, facts: Facts, patience: Patience, now: Seconds) -> tuple[Life, Act | None]:
    """One step at most: where it stands then, and what is to be done."""
    true = _true(life, facts, patience, now)
    for event in HEARD[life.phase]:
        if true[event]:
            phase, act = TABLE[life.phase, event]
            return _moved(life, event, phase, facts, patience, now), act
    return life, None


def _true(life: Life, facts: Facts, patience: Patience, now: Seconds) -> dict[Event, bool]:
    """What can be said now. One that did not start and runs after all has changed: that is news at once."""
    rested = now >= life.not_before
    may_move = facts.may_move and rested
    return {
        E.SEEN_RUNNING: facts.seen is Seen.RUNNING and (rested or life.failed is Act.START),
        E.SEEN_STOPPED: facts.seen is Seen.STOPPED,
        E.WANTED: facts.wanted and (may_move or life.phase is P.DRAINING),
        E.UNWANTED: may_move and not facts.wanted,
        E.EMPTY: facts.empty,
        E.TOO_LONG: now - life.since > patience.drain,
        E.DONE: facts.done is True,
        E.BROKE: facts.done is False,
        E.HOPELESS: life.failures >= patience.tries and not rested,
        E.AGAIN: rested,
    }


def _moved(life: Life, event: Event, phase: Phase, facts: Facts, patience: Patience, now: Seconds) -> Life:
    failed = FAILURES.get((life.phase, event))
    if failed is not None:
        failures = life.failures + 1
        wait = patience.back_off * 2.0 ** (failures - 1)
        if failures >= patience.tries:
            wait = patience.given_up
        problem = facts.problem or f"{life.phase.value}: {event.value}"
        return Life(phase, now, failures, Seconds(now + wait), failed, problem)
    came_through = event is E.DONE and (life.phase is P.STOPPING or phase is P.SERVING)
    if event is E.AGAIN or (came_through and (life.failed is not Act.STOP or phase is P.STOPPED)):
        return Life(phase, now)
    return replace(life, phase=phase, since=now)  # that it would not stop is not forgotten because it serves
