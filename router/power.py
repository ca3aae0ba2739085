"""Pure: power budgets over the fleet as its agents show it: how far each clock may go, and each cap.

What a GPU is expected to draw at a clock is what it drew lately, carried over to that clock by its model:

    expected(f) = idle + use * (shape(f) - idle)      use = (drawn - idle) / (shape(clock) - idle)

`shape` is the model's power of a usual batch, `use` the highest of the last seconds. So the level is
measured, and only what another clock would change is the model's word. A GPU without a model, or whose
clock is not ours, draws what it drew; one that was not heard of lately draws its cap.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from math import exp, inf
from weakref import WeakKeyDictionary

from control.power_budget import (
    Allocation,
    Domain,
    Draw,
    Emergency,
    EmergencyPolicy,
    Phase,
    Rung,
    allocate,
    step,
)
from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import GpuState
from router.power_caps import CapBook

USUAL = Batch(decoding=16, context_tokens=16 * 700.0)
RUNGS = 16  # clocks of a ladder: finer ones are worth less than a reading's noise
MEMORY = 10.0  # seconds in which a peak of the draw fades to a third
ANEW = 1.0  # seconds after which clocks that keep the budgets are planned anew
RAISE_AFTER = 2.0  # seconds that a limit stands before it is raised
STALE = 3.0  # seconds after which a GPU counts as not heard of
MOST_USE = 1.5  # of the usual batch's power; more is a clock read in the wrong moment


@dataclass(frozen=True, slots=True)
class Named:
    """A domain as the operator wrote it. `agents`: every GPU of theirs is in it."""

    name: str
    budget: Watts
    inside: str | None = None
    agents: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PowerRules:
    enforce: bool = False
    domains: tuple[Named, ...] = ()
    policy: EmergencyPolicy = field(default_factory=EmergencyPolicy)
    hot: float = 85.0  # Celsius


@dataclass(frozen=True, slots=True)
class Feed:
    """What a tick knows of one GPU. `model` None: its clock is not ours to lower, or nothing is known."""

    state: GpuState  # as last seen
    fresh: bool  # and that was a moment ago
    caps: tuple[Watts, Watts] | None  # lowest and highest of its board
    model: EngineModel | None = None
    wanted: MegaHertz | None = None  # by its governor; None: no ceiling
    priority: int = 0
    lowest: MegaHertz = MegaHertz(0)  # that its agent lets anybody ask for


@dataclass(frozen=True, slots=True)
class DomainState:
    """One domain at the last tick."""

    name: str
    budget: Watts  # as configured
    limit: Watts  # as cut now
    drawn: Watts  # measured; GPUs not heard of counted at their caps
    expected: Watts  # at the clocks chosen
    unmet: bool  # not even the lowest caps keep it


@dataclass(slots=True)
class Shedding:
    """One emergency: when it began, and how long until every domain was within its cut budget."""

    began: Seconds
    within: Seconds | None = None  # after so many seconds


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's watts of the usual batch above idle, at some of its clocks."""

    idle: Watts
    clocks: tuple[MegaHertz, ...]
    above: tuple[float, ...]

    @classmethod
    def of(cls, model: EngineModel) -> "Shape":
        last, idle = len(model.clocks) - 1, model.idle_watts
        steps = min(last, RUNGS - 1)
        places = [round(i * last / steps) for i in range(steps + 1)] if steps else [last]
        clocks = tuple(model.clocks[i] for i in places)
        return cls(idle, clocks, tuple(max(0.0, model.watts(USUAL, clock) - idle) for clock in clocks))

    def at(self, clock: float) -> float:
        """Between two clocks on the straight line."""
        right = bisect_left(self.clocks, clock)
        if right == 0 or right == len(self.clocks):
            return self.above[max(0, right - 1)]
        low, high = self.clocks[right - 1], self.clocks[right]
        part = (clock - low) / (high - low)
        return self.above[right - 1] + part * (self.above[right] - self.above[right - 1])

    def rung(self, use: float, clock: MegaHertz) -> Rung:
        """Expected watts at a clock."""
        return clock, Watts(self.idle + use * self.at(clock))

    def below(self, use: float, lowest: MegaHertz, top: MegaHertz) -> list[Rung]:
        """The same for our clocks from `lowest` up to below `top`."""
        first, count = bisect_left(self.clocks, lowest), bisect_left(self.clocks, top)
        rungs = zip(self.clocks[first:count], self.above[first:count], strict=True)
        return [(clock, Watts(self.idle + use * above)) for clock, above in rungs]


@dataclass(slots=True, eq=False)
class PowerKeeper:
    """`plan` once a tick; then `limits` and `caps` hold until the next.

    They are planned anew once a second, and at once when they do not keep a budget, a budget has changed, or
    a GPU has come or gone.
    """

    rules: PowerRules
    emergency: Emergency = field(default_factory=Emergency)
    limits: Mapping[str, MegaHertz] = field(default_factory=dict)  # GPU -> highest clock; only who is held
    caps: CapBook = field(default_factory=CapBook)
    domains: tuple[DomainState, ...] = ()
    sheddings: deque[Shedding] = field(default_factory=lambda: deque(maxlen=20))
    _uses: dict[str, float] = field(default_factory=dict)  # GPU -> `use`, or watts where there is no model
    _shapes: WeakKeyDictionary[EngineModel, Shape] = field(default_factory=WeakKeyDictionary)
    _since: dict[str, Seconds] = field(default_factory=dict)  # GPU -> when its limit last changed
    _planned: Seconds = Seconds(-inf)
    _allocated: Seconds = Seconds(-inf)
    _allocation: Allocation = field(default_factory=lambda: Allocation({}, ()))
    _basis: tuple[PowerRules, float, bool, Set[str]] | None = None  # what it was made for

    @property
    def idle(self) -> bool:
        """Nothing to plan, nothing to take back."""
        return not (self.rules.domains or self.limits or self.caps.standing)

    def plan(
        self, feeds: Mapping[str, Feed], nodes: Mapping[str, frozenset[str]], alarm: bool, now: Seconds
    ) -> None:
        """`nodes`: the GPUs of each agent, as far as it has said; `alarm`: an emergency from outside."""
        tree = Domain("", Watts(inf), children=tuple(_trees(self.rules.domains, None, nodes)))
        members = tree.members() & feeds.keys()
        fade = exp(-(now - self._planned) / MEMORY)
        draws = {uuid: self._draw(uuid, feeds[uuid], fade) for uuid in members}
        drawn = {u: Watts(_at_most(feeds[u], self.caps.standing.get(u, inf))) for u in members}
        every = [domain for domain in _every(tree) if domain.name]
        self._planned = now
        self._judge(every, drawn, alarm, now)
        ratio = self.emergency.ratio
        complete = all(_known(named, nodes, feeds) for named in self.rules.domains)
        limits = [(domain.members() & members, Watts(domain.budget * ratio)) for domain in every]
        basis = self.rules, ratio, complete, members
        if basis != self._basis or now - self._allocated >= ANEW or not self._keeps(limits, draws, feeds):
            self._basis, self._allocated = basis, now
            self._allocation = allocate(tree, draws, ratio)
            self._take_up(draws, limits, complete, now)
        self.domains = tuple(_state(domain, ratio, drawn, self._allocation) for domain in every)

    def _keeps(
        self, limits: Sequence[tuple[Set[str], Watts]], draws: Mapping[str, Draw], feeds: Mapping[str, Feed]
    ) -> bool:
        """Whether every budget is kept by the clocks as they are limited now."""
        expected = {uuid: self._limited(uuid, draw, feeds[uuid]) for uuid, draw in draws.items()}
        return all(sum(expected[uuid] for uuid in members) <= budget for members, budget in limits)

    def _limited(self, uuid: str, draw: Draw, feed: Feed) -> Watts:
        limit, (clock, watts) = self.limits.get(uuid), draw.top
        if limit is None or limit >= clock or feed.model is None:
            return watts
        return self._shapes[feed.model].rung(self._uses[uuid], limit)[1]

    def _take_up(
        self,
        draws: Mapping[str, Draw],
        limits: Sequence[tuple[Set[str], Watts]],
        complete: bool,
        now: Seconds,
    ) -> None:
        """New limits and caps, from the new allocation."""
        if self.rules.enforce and limits:
            self._hold(draws, self._allocation, now)
            caps = {uuid: draw.caps for uuid, draw in draws.items()}
            self.caps.revise(self._allocation.shares, caps, limits, complete)
        else:
            self.limits = {}
            self.caps.lift()

    def _hold(self, draws: Mapping[str, Draw], allocation: Allocation, now: Seconds) -> None:
        """New limits: down at once; up, or gone, only when the one before has stood for a while."""
        limits: dict[str, MegaHertz] = {}
        for uuid, share in allocation.shares.items():
            fresh = share.clock if share.clock < draws[uuid].top[0] else None
            before, since = self.limits.get(uuid), self._since.get(uuid, -inf)
            rises = before is not None and (fresh is None or fresh > before)
            clock = before if rises and now - since < RAISE_AFTER else fresh
            if clock is not None:
                limits[uuid] = clock
            if clock != before:
                self._since[uuid] = now
        self.limits = limits

    def _draw(self, uuid: str, feed: Feed, fade: float) -> Draw:
        state, model = feed.state, feed.model
        used = fade * self._uses.get(uuid, 0.0)
        if not feed.fresh or model is None:
            watts = self._uses[uuid] = max(_at_most(feed, self.caps.standing.get(uuid, inf)), used)
            return Draw((MegaHertz(1), Watts(watts)), feed.caps or (Watts(watts),) * 2, feed.priority)
        shape = self._shapes.get(model)
        if shape is None:
            shape = self._shapes[model] = Shape.of(model)
        use = max((state.power_w - shape.idle) / max(1.0, shape.at(state.clock_mhz)), used, 0.0)
        use = self._uses[uuid] = min(MOST_USE, use)
        clock = min(feed.wanted or shape.clocks[-1], shape.clocks[-1])
        top = shape.rung(use, clock)
        return Draw(
            top, feed.caps or (top[1],) * 2, feed.priority, partial(shape.below, use, feed.lowest, clock)
        )

    def _judge(self, every: Sequence[Domain], drawn: Mapping[str, Watts], alarm: bool, now: Seconds) -> None:
        """Move the emergency on by the domain that is fullest."""
        used = [sum(drawn[u] for u in d.members() & drawn.keys()) / d.budget for d in every]
        fullest = Watts(max(used, default=0.0))
        before = self.emergency
        self.emergency = step(before, self.rules.policy, fullest, Watts(1.0), alarm, now)
        if self.emergency.phase is Phase.EMERGENCY:
            if before.phase is not Phase.EMERGENCY:
                self.sheddings.append(Shedding(now))
            last = self.sheddings[-1]
            if last.within is None and fullest <= self.emergency.ratio:
                last.within = Seconds(now - last.began)


def _trees(
    domains: Sequence[Named], inside: str | None, nodes: Mapping[str, frozenset[str]]
) -> Iterator[Domain]:
    for named in domains:
        if named.inside == inside:
            gpus = frozenset(named.gpus).union(*(nodes.get(agent, frozenset()) for agent in named.agents))
            yield Domain(named.name, named.budget, gpus, tuple(_trees(domains, named.name, nodes)))


def _known(named: Named, nodes: Mapping[str, frozenset[str]], feeds: Mapping[str, Feed]) -> bool:
    return all(nodes.get(agent) for agent in named.agents) and feeds.keys() >= set(named.gpus)


def _every(domain: Domain) -> Iterator[Domain]:
    yield domain
    for child in domain.children:
        yield from _every(child)


def _at_most(feed: Feed, cap: float) -> float:
    """Watts drawn; by a GPU that was not heard of lately, up to its cap."""
    if feed.fresh:
        return feed.state.power_w
    return min(cap, feed.caps[1]) if feed.caps is not None else feed.state.power_w


def _state(domain: Domain, ratio: float, drawn: Mapping[str, Watts], allocation: Allocation) -> DomainState:
    members = domain.members() & drawn.keys()
    return DomainState(
        name=domain.name,
        budget=domain.budget,
        limit=Watts(domain.budget * ratio),
        drawn=Watts(sum(drawn[uuid] for uuid in members)),
        expected=Watts(sum(allocation.shares[uuid].watts for uuid in members)),
        unmet=domain.name in allocation.unmet,
    )
