"""Pure: joules as grams of CO2 and as money, by constants or a series that the operator gave.

Operational only: energy times PUE times grid intensity. What the hardware cost to make is not in it.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from joulegate.units import Joules

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Intensity:
    """Grams of CO2 per kWh over time: each value holds until the next."""

    since: tuple[float, ...]  # unix seconds, ascending
    grams: tuple[float, ...]

    def at(self, unix: float) -> float:
        """Before the first row the first row holds."""
        return self.grams[max(0, bisect_right(self.since, unix) - 1)]


@dataclass(slots=True)
class Footprint:
    """Running totals. None: the operator gave no figure, so none is reported."""

    pue: float = 1.0
    intensity: Intensity | None = None
    price_per_kwh: float | None = None
    currency: str = ""
    grams: float = 0.0
    cost: float = 0.0
    joules: float = field(default=0.0)  # at the boards, PUE not applied

    def add(self, joules: Joules, unix: float) -> None:
        """`joules` were drawn just before `unix`."""
        self.joules += joules
        kwh = joules * self.pue / JOULES_PER_KWH
        if self.intensity is not None:
            self.grams += kwh * self.intensity.at(unix)
        if self.price_per_kwh is not None:
            self.cost += kwh * self.price_per_kwh


def constant(grams_per_kwh: float) -> Intensity:
    return Intensity((0.0,), (grams_per_kwh,))


def series(lines: Iterable[str]) -> Intensity:
    """From CSV lines `unix_s,g_per_kwh`; a header is allowed. Raises ValueError naming the line."""
    since: list[float] = []
    grams: list[float] = []
    for number, line in enumerate(lines, 1):
        cells = line.strip().split(",")
        if cells == [""] or (number == 1 and cells[0] == "unix_s"):
            continue
        try:
            when, value = map(float, cells)
        except ValueError as error:
            raise ValueError(f"line {number}: expected unix_s,g_per_kwh, found {line.strip()!r}") from error
        if value < 0 or (since and when <= since[-1]):
            raise ValueError(f"line {number}: times must rise and intensities not be negative")
        since.append(when)
        grams.append(value)
    if not since:
        raise ValueError("no rows")
    return Intensity(tuple(since), tuple(grams))
