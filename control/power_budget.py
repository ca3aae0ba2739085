"""Pure: power budgets over a tree of domains (row, rack, node): clocks first, caps as their backstop.

Theory of operation. Every GPU has a ladder: what it would draw at each clock it may run at. Starting from the
clocks that the governor wants, each domain, innermost first, steps GPUs down until its sum fits its budget:
lowest priority first, and among equals the step that frees most watts for the speed it costs (POLCA lowers by
priority, TAPAS by domain; papers §4). Clocks rest on predictions, so each GPU also gets a cap. With the
lowest and the highest cap of its board, and between them what it is expected to draw,

    cap(u) = low + u (expected - low)              0 <= u <= 1
             expected + (u - 1) (high - expected)  1 <= u <= 2

at the largest u at which the caps of every domain it is in sum to at most the budget, however wrong the
ladders are. So who is busy is capped last, and who idles may burst into what is left. Caps fail closed: they
stay when whoever computed them is gone. A domain whose budget is below its GPUs' lowest caps is named in
`unmet`: only fewer running instances help there.

An emergency scales every budget: to 75 % at once, held for minutes, given back slowly (a UPS allows 10 s).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heapreplace
from math import inf

from joulegate.units import MegaHertz, Seconds, Watts

Rung = tuple[MegaHertz, Watts]  # a clock, and what a GPU would draw at it
_Span = tuple[Watts, Watts, Watts]


@dataclass(frozen=True, slots=True)
class Domain:
    """A breaker, a rack, a node. `gpus` are its own; those of its children belong to it too."""

    name: str
    budget: Watts
    gpus: frozenset[str] = frozenset()
    children: tuple["Domain", ...] = ()
    _members: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = self.gpus.union(*(child.members() for child in self.children))
        object.__setattr__(self, "_members", members)

    def members(self) -> frozenset[str]:
        return self._members


@dataclass(frozen=True, slots=True)
class Draw:
    """One GPU. One that has not been heard of draws its cap at every clock: no rung is below `top`."""

    top: Rung  # the clock that is wanted
    caps: tuple[Watts, Watts]  # lowest and highest its board takes
    priority: int = 0  # higher ones are lowered later
    below: Callable[[], Sequence[Rung]] = tuple  # ascending; only asked for where a budget binds


@dataclass(frozen=True, slots=True)
class Share:
    """What one GPU gets."""

    clock: MegaHertz
    watts: Watts  # predicted at that clock
    cap: Watts


@dataclass(frozen=True, slots=True)
class Allocation:
    shares: Mapping[str, Share]
    unmet: tuple[str, ...]  # domains whose budget cannot be kept


def allocate(root: Domain, draws: Mapping[str, Draw], ratio: float) -> Allocation:
    """Clocks and caps under every budget times `ratio`. GPUs without a draw count nothing."""
    chosen = {uuid: draw.top for uuid, draw in draws.items()}
    ladders: dict[str, list[Rung]] = {}
    domains = _innermost_first(root)
    for domain in domains:
        _fit(domain, draws, chosen, ladders, Watts(domain.budget * ratio))
    spans = {uuid: _span(draws[uuid].caps, watts) for uuid, (_, watts) in chosen.items()}
    levels = _levels(domains, spans, ratio)
    shares = {
        uuid: Share(clock, watts, _cap(spans[uuid], levels[uuid])) for uuid, (clock, watts) in chosen.items()
    }
    unmet = tuple(domain.name for domain in domains if _exceeds(domain, shares, Watts(domain.budget * ratio)))
    return Allocation(shares, unmet)


def _innermost_first(root: Domain) -> list[Domain]:
    return [each for child in root.children for each in _innermost_first(child)] + [root]


def _fit(
    domain: Domain,
    draws: Mapping[str, Draw],
    chosen: dict[str, Rung],
    ladders: dict[str, list[Rung]],
    budget: Watts,
) -> None:
    """Step GPUs of the domain down until their sum fits, or none can go further.

    `ladders` has the rungs below the chosen one of every GPU that some domain had to lower, lowest first.
    """
    members = domain.members() & draws.keys()
    total = float(sum(chosen[uuid][1] for uuid in members))
    if total <= budget:
        return
    steps = []
    for uuid in members:
        if uuid not in ladders:
            ladders[uuid] = list(draws[uuid].below())
        if ladders[uuid]:
            steps.append((*_cost(draws[uuid].priority, ladders[uuid][-1], chosen[uuid]), uuid))
    heapify(steps)
    while total > budget and steps:
        _, _, uuid = steps[0]
        ladder = ladders[uuid]
        rung = ladder.pop()
        total -= chosen[uuid][1] - rung[1]
        chosen[uuid] = rung
        if ladder:
            heapreplace(steps, (*_cost(draws[uuid].priority, ladder[-1], rung), uuid))
        else:
            heappop(steps)


def _cost(priority: int, below: Rung, here: Rung) -> tuple[int, float]:
    """What the step down costs: priority first, then the share of speed lost per watt freed."""
    (lower, less), (clock, watts) = below, here
    freed = watts - less
    return priority, (1.0 - lower / clock) / freed if freed > 0.0 else inf


def _span(caps: tuple[Watts, Watts], watts: Watts) -> _Span:
    """Lowest cap, what it is expected to draw, highest cap."""
    low, high = caps
    return low, Watts(max(low, min(high, watts))), high


def _levels(domains: Sequence[Domain], spans: Mapping[str, _Span], ratio: float) -> dict[str, float]:
    """For each GPU the smallest u of its domains."""
    levels = dict.fromkeys(spans, 2.0)
    for domain in domains:
        members = domain.members() & spans.keys()
        low, expected, high = (float(sum(spans[uuid][k] for uuid in members)) for k in range(3))
        budget = domain.budget * ratio
        if high <= budget:
            continue
        if expected <= budget:
            level = 1.0 + (budget - expected) / (high - expected)
        else:
            level = (budget - low) / (expected - low) if budget > low else 0.0
        for uuid in members:
            levels[uuid] = min(levels[uuid], level)
    return levels


def _cap(span: _Span, level: float) -> Watts:
    low, expected, high = span
    if level <= 1.0:
        return Watts(low + level * (expected - low))
    return Watts(expected + (level - 1.0) * (high - expected))


def _exceeds(domain: Domain, shares: Mapping[str, Share], budget: Watts) -> bool:
    return sum(shares[uuid].cap for uuid in domain.members() & shares.keys()) > budget * (1.0 + 1e-9)


class Phase(Enum):
    NORMAL = "normal"
    EMERGENCY = "emergency"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True)
class EmergencyPolicy:
    """When to shed and how to come back. Defaults: TAPAS's power failure."""

    ratio: float = 0.75  # of every budget, at once
    hold: Seconds = Seconds(300.0)  # at least so long, and until the alarm is over
    trip: Seconds = Seconds(2.0)  # above budget for so long is an alarm of its own
    ramp: Seconds = Seconds(120.0)  # from `ratio` back to 1


@dataclass(frozen=True, slots=True)
class Emergency:
    """Where a site stands; `ratio` is what `allocate` wants."""

    phase: Phase = Phase.NORMAL
    since: Seconds = Seconds(-inf)
    ratio: float = 1.0
    over_since: Seconds | None = None  # when the draw went above the budget


def step(
    state: Emergency, policy: EmergencyPolicy, drawn: Watts, budget: Watts, alarm: bool, now: Seconds
) -> Emergency:
    """One look at the meters. `alarm`: a UPS on battery, an operator. Anything but calm sheds at once."""
    over = (state.over_since if state.over_since is not None else now) if drawn > budget else None
    tripped = alarm or (over is not None and now - over >= policy.trip)
    if tripped:
        since = state.since if state.phase is Phase.EMERGENCY else now
        return Emergency(Phase.EMERGENCY, since, policy.ratio, over)
    if state.phase is Phase.EMERGENCY:
        if now - state.since < policy.hold or drawn > budget * policy.ratio:
            return Emergency(Phase.EMERGENCY, state.since, policy.ratio, over)
        return Emergency(Phase.RECOVERING, now, policy.ratio, over)
    if state.phase is Phase.RECOVERING:
        ratio = policy.ratio + (1.0 - policy.ratio) * (now - state.since) / policy.ramp
        if ratio < 1.0:
            return Emergency(Phase.RECOVERING, state.since, ratio, over)
    return Emergency(Phase.NORMAL, now, 1.0, over)
