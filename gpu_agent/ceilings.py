"""Pure: the clock ceiling of one GPU: what is wanted, and whether it may be written now.

wanted = min(highest allowed, max(lease target, live boosts)), snapped up to a supported clock;
without a target the site's own lock if it has one, else the driver's default (None).

Theory of operation. A ceiling orders by `level`: None, the driver's default, is above every clock. Going up
is always allowed and at once. Going down waits until `dwell` has passed since the last change, which also
bounds it to one lowering per dwell; and it needs the guard's consent. A write that failed leaves the GPU
`unsure`: then only the way up is left, until a write has worked again.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from math import inf

from joulegate.units import MegaHertz, Seconds

MAX_BOOSTS = 16  # live ones kept per GPU; the lowest give way
Ceiling = MegaHertz | None  # None: the driver's default


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator and the GPU allow. Clocks ascending."""

    clocks: tuple[MegaHertz, ...]
    lowest: MegaHertz
    highest: MegaHertz
    site_lock: Ceiling  # the state to return to
    dwell: Seconds

    @property
    def floor_clock(self) -> MegaHertz:
        """The lower end of every lock: a lock is a ceiling, so the GPU may always go down to here."""
        return self.clocks[0]


@dataclass(frozen=True, slots=True)
class Boost:
    floor: MegaHertz
    until: Seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """One GPU: what is asked of it and what was written last."""

    target: Ceiling = None
    boosts: tuple[Boost, ...] = ()
    applied: Ceiling = None
    changed: Seconds = Seconds(-inf)
    unsure: bool = False


def level(ceiling: Ceiling) -> float:
    return inf if ceiling is None else ceiling


def limits_for(
    clocks: tuple[MegaHertz, ...],
    lowest: int | None,
    highest: int | None,
    site_lock: int | None,
    dwell: Seconds,
) -> Limits:
    """Clamp the operator's numbers to clocks that exist; the site's lock bounds what anybody may ask for."""
    low = snap(clocks, lowest or clocks[0])
    high = snap(clocks, min(highest or clocks[-1], site_lock or clocks[-1]))
    return Limits(clocks, min(low, high), high, snap(clocks, site_lock) if site_lock else None, dwell)


def snap(clocks: tuple[MegaHertz, ...], clock: int) -> MegaHertz:
    """The lowest supported clock that is not below `clock`; the highest when none is."""
    return clocks[min(bisect_left(clocks, clock), len(clocks) - 1)]


def wanted(plan: Plan, limits: Limits, now: Seconds) -> Ceiling:
    if plan.target is None:
        return limits.site_lock
    floors = [boost.floor for boost in plan.boosts if now < boost.until]
    clock = snap(limits.clocks, max([plan.target, *floors]))
    return max(limits.lowest, min(limits.highest, clock))


def due(plan: Plan, limits: Limits, now: Seconds, may_lower: bool) -> tuple[Ceiling] | None:
    """The ceiling to write now, in a tuple since None is one; None when nothing is to be written."""
    if plan.unsure:
        return (limits.site_lock,)
    want = wanted(plan, limits, now)
    if level(want) > level(plan.applied):
        return (want,)
    if want == plan.applied or not may_lower or now - plan.changed < limits.dwell:
        return None
    return (want,)


def content(plan: Plan, limits: Limits) -> bool:
    """Whether nothing will be due for this plan, however much time passes."""
    return not plan.boosts and not plan.unsure and wanted(plan, limits, Seconds(0.0)) == plan.applied


def boosted(plan: Plan, floor: MegaHertz, until: Seconds, now: Seconds) -> Plan:
    """Add a boost; ended ones leave."""
    live = [b for b in plan.boosts if now < b.until] + [Boost(floor, until)]
    live.sort(key=lambda b: b.floor, reverse=True)
    return replace(plan, boosts=tuple(live[:MAX_BOOSTS]))


def written(plan: Plan, ceiling: Ceiling, now: Seconds) -> Plan:
    return replace(plan, applied=ceiling, changed=now, unsure=False)


def failed(plan: Plan) -> Plan:
    """A write did not work: nobody knows what holds, and nothing is wanted any more."""
    return replace(plan, target=None, boosts=(), unsure=True)
