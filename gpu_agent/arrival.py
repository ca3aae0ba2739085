"""Pure: how long a clock takes to get where it was told: from before the write until it is read back there.

Only a lowering of a clock that runs above its new ceiling must show; what a raised ceiling does depends on
the work. NVML's success means no more than that the request was taken.
"""

from dataclasses import dataclass, replace

from gpu_agent.ceilings import Ceiling
from joulegate.units import MegaHertz, Seconds

KEEP = 16  # newest measurements; the slowest of them is what may be counted on
EVERY = Seconds(10.0)  # between two measurements of one GPU: each costs some readings
GIVE_UP = Seconds(1.0)


@dataclass(frozen=True, slots=True)
class Watch:
    """A clock on its way down."""

    ceiling: MegaHertz
    since: Seconds  # before the write


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What has been measured on one GPU, and what is being measured."""

    took: tuple[Seconds, ...] = ()
    watch: Watch | None = None
    next_at: Seconds = Seconds(0.0)

    @property
    def slowest(self) -> Seconds | None:
        return max(self.took) if self.took else None


def watched(
    arrivals: Arrivals, clock: MegaHertz, ceiling: Ceiling, tolerance: MegaHertz, since: Seconds
) -> Arrivals:
    """`ceiling` is about to be written at `since`, the GPU runs at `clock`. Small steps are not seen."""
    if ceiling is None or clock <= ceiling + tolerance:
        return replace(arrivals, watch=None)
    return replace(arrivals, watch=Watch(ceiling, since), next_at=Seconds(since + EVERY))


def looked(arrivals: Arrivals, clock: MegaHertz, tolerance: MegaHertz, now: Seconds) -> Arrivals:
    """The clock was read at `now`."""
    watch = arrivals.watch
    if watch is None:
        return arrivals
    took = Seconds(now - watch.since)
    if clock <= watch.ceiling + tolerance:
        return replace(arrivals, watch=None, took=(*arrivals.took[1 - KEEP :], took))
    return replace(arrivals, watch=None) if took > GIVE_UP else arrivals
