"""Pure: joules of one GPU from what its driver offers: a counter that may start again, or only power."""

from dataclasses import dataclass
from typing import Literal

from gpu_agent.device import Reading
from joulegate.units import Joules, Seconds, Watts


@dataclass(slots=True)
class Meter:
    """Joules since the first reading, carried over counter resets and gaps between them.

    Not frozen, only to be made faster; nobody changes it.
    """

    total: Joules = Joules(0.0)
    counter: Joules | None = None
    watts: Watts = Watts(0.0)
    at: Seconds | None = None
    source: Literal["counter", "integrated"] = "counter"


def read(meter: Meter, reading: Reading, now: Seconds) -> Meter:
    """Add what was used since the last reading.

    A counter that went backwards has started again (driver reload, wrap): since then it has counted what it
    shows; what was used between the last reading and the reset is lost to it, so power fills the gap when
    that gives more. Without a counter, power is integrated by trapezoids.
    """
    if meter.at is None:
        start = reading.counter if reading.counter is not None else Joules(0.0)
        source: Literal["counter", "integrated"] = "counter" if reading.counter is not None else "integrated"
        return Meter(start, reading.counter, reading.watts, now, source)
    integrated = Joules((meter.watts + reading.watts) / 2.0 * max(0.0, now - meter.at))
    used = integrated
    if reading.counter is not None and meter.counter is not None:
        step = reading.counter - meter.counter
        used = Joules(step if step >= 0.0 else max(reading.counter, integrated))
    return Meter(
        Joules(meter.total + used),
        reading.counter,
        reading.watts,
        now,
        "counter" if reading.counter is not None else "integrated",
    )
