"""Pure: whether an agent that is past its deadline hangs, or stood still together with its watchdog.

A host that gives its machine no processor holds up everything on it. The watchdog sees that on itself: it
wakes later than it asked to. An agent that is past its deadline just then gets a moment in which to say that
it lives, once a deadline. Its clocks are given back without waiting for that. Who woke in time spares nobody.
"""

from enum import Enum, auto

from joulegate.units import Seconds

# longest sleep of a watchdog with a deadline to watch, so that it notices its own stalls
BEAT = Seconds(0.25)
LATE = Seconds(0.05)  # what a wake-up may be late by on a machine that runs
MOMENT = Seconds(1.0)  # for an agent, from the end of a stall


class Verdict(Enum):
    IN_TIME = auto()
    SPARED = auto()
    OVER = auto()


def stall_end(before: Seconds, due: Seconds, woke: Seconds) -> Seconds:
    """When the last stall ended: now, if the watchdog woke late for `due`; else when it did `before`."""
    return woke if woke > due + LATE else before


def verdict(deadline: Seconds, now: Seconds, stalled: Seconds, spared: Seconds | None) -> Verdict:
    """`stalled`: when the last stall ended. `spared`: until when it was for this deadline; None: not yet."""
    if now < deadline:
        return Verdict.IN_TIME
    until = Seconds(stalled + MOMENT) if spared is None else spared
    return Verdict.SPARED if now < until else Verdict.OVER
