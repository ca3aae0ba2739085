"""Pure: what the agent does about a GPU that does not do as told.

NORMAL    ceilings go up and down
HOLD      they may only go up: the GPU throttles itself, or ran above its ceiling and was told again
SAFE      failed up: back to the site's state, requests are refused for a while
RELEASED  hands off: the driver is being replaced
"""

from dataclasses import dataclass, replace
from enum import Enum
from math import inf

from gpu_agent.ceilings import Ceiling
from gpu_agent.device import THROTTLING, Reading
from joulegate.units import MegaHertz, Seconds


class State(Enum):
    NORMAL = "normal"
    HOLD = "hold"
    SAFE = "safe"
    RELEASED = "released"


class Event(Enum):
    OBEYS = "obeys"
    THROTTLES = "throttles"  # held down by heat or power
    ABOVE = "above"  # runs faster than its ceiling
    FAILED = "failed"  # a write did not work
    RESTED = "rested"  # the pause after SAFE is over
    RELEASED = "released"
    RESUMED = "resumed"


TRANSITIONS = {
    (State.NORMAL, Event.THROTTLES): State.HOLD,
    (State.NORMAL, Event.ABOVE): State.HOLD,
    (State.HOLD, Event.OBEYS): State.NORMAL,
    (State.HOLD, Event.ABOVE): State.SAFE,
    (State.NORMAL, Event.FAILED): State.SAFE,
    (State.HOLD, Event.FAILED): State.SAFE,
    (State.SAFE, Event.RESTED): State.NORMAL,
    (State.NORMAL, Event.RELEASED): State.RELEASED,
    (State.HOLD, Event.RELEASED): State.RELEASED,
    (State.SAFE, Event.RELEASED): State.RELEASED,
    (State.RELEASED, Event.RESUMED): State.NORMAL,
}


@dataclass(frozen=True, slots=True)
class Guard:
    state: State = State.NORMAL
    since: Seconds = Seconds(-inf)
    why: str = ""

    @property
    def may_lower(self) -> bool:
        return self.state is State.NORMAL

    @property
    def accepts(self) -> bool:
        """Whether a holder's targets count at all."""
        return self.state in (State.NORMAL, State.HOLD)


def step(guard: Guard, event: Event, now: Seconds, why: str = "") -> Guard:
    """The table; an event without an entry changes nothing."""
    state = TRANSITIONS.get((guard.state, event), guard.state)
    return guard if state is guard.state else replace(guard, state=state, since=now, why=why)


def judge(ceiling: Ceiling, reading: Reading, tolerance: MegaHertz) -> Event:
    """Compare what a GPU does with what it was told, once the ceiling has had time to settle."""
    if ceiling is not None and reading.clock > ceiling + tolerance:
        return Event.ABOVE
    if reading.reasons and THROTTLING.intersection(reading.reasons):
        return Event.THROTTLES
    return Event.OBEYS
