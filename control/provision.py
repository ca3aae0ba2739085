"""Pure: which pools of a model should share their instances in the next epoch, and how many each gets.

Theory of operation (papers §1.4, §1.7). Pools share the model's instances, and those of them are merged, two
at a time, whose merging saves most, until none saves `WORTH` of the whole. A pool may only be merged into one
that is at least as large in both dimensions and promises the same.

What each border costs is a fleet program (`control.fleet_plan`) by the measure of `control.sizing`: enough at
maximum clock for the most that the forecast expects of the epoch, least watts at what comes on average. Its
columns are one instance of a kind at ten levels of load; the watts of a stopped instance are taken off, since
it draws them anyway, so that only what stopping frees counts. Starting one and prefilling the sessions of one
that stops again are paid back within the epoch, or nothing changes.

Where the load is more than there is, everything runs. Who asks leaves out what has no model: nothing is
known of it, so nothing of it is stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from control.fleet_plan import Configuration, Fleet, Plan, greedy
from control.floor import Demand
from control.planner import PlanRules, Stock, configurations, together
from joulegate.domain import Objectives
from joulegate.units import Seconds

WORTH = 0.03  # share of the fleet's watts that a merge must save, and that a split must
LEAST_WATTS = 1e-3  # of a configuration: a program with free instances has no least cost


@dataclass(frozen=True, slots=True)
class PoolNeed:
    """One pool as it is configured. `demand` None: nothing comes."""

    name: str
    reach: tuple[int, int]
    objectives: Objectives
    demand: Demand | None  # on average
    expected: float  # requests per second, at most
    least: int  # instances that stay warm
    stock: tuple[Stock, ...]
    terms: tuple[object, ...] = ()  # what else pools must have in common to be one

    def takes(self, other: "PoolNeed") -> bool:
        """Whether `other` may be merged into this one."""
        larger = self.reach[0] >= other.reach[0] and self.reach[1] >= other.reach[1]
        return larger and (self.objectives, self.terms) == (other.objectives, other.terms)


@dataclass(frozen=True, slots=True)
class Question:
    """One model's fleet. `merged`: pool -> the one it is part of now."""

    pools: tuple[PoolNeed, ...]
    merged: Mapping[str, str]
    epoch: Seconds
    rules: PlanRules


@dataclass(frozen=True, slots=True)
class Provision:
    """`counts` by pool; a pool in `merged` is part of another and has none of its own."""

    counts: Mapping[str, int]
    merged: Mapping[str, str]
    watts: float  # of what runs, above what it draws stopped; estimated
    gap: float | None  # to the least possible, ratio; None: no bound is known
    short: tuple[str, ...]  # pools whose load is more than their instances carry


@dataclass(frozen=True, slots=True)
class Solution:
    plan: Plan | None
    gap: float | None


Solve = Callable[[Mapping[str, float], Mapping[str, Sequence[Configuration]], Fleet], Solution]


@dataclass(frozen=True, slots=True)
class _Group:
    """Pools that share instances; `host` is the one they are part of."""

    host: PoolNeed
    pools: tuple[PoolNeed, ...]

    @property
    def demand(self) -> Demand | None:
        found: Demand | None = None
        for pool in self.pools:
            if pool.demand is not None and pool.demand.rate > 0.0:
                found = pool.demand if found is None else together(found, pool.demand)
        return found

    @property
    def expected(self) -> float:
        return sum(pool.expected for pool in self.pools)

    @property
    def least(self) -> int:
        return max(pool.least for pool in self.pools)


def provision(question: Question, solve: Solve) -> Provision:
    """The answer. Borders are compared greedily, `solve` makes the plan."""
    asked = _Asked(question)
    return asked.planned(_borders(asked), solve)


def _quick(
    demands: Mapping[str, float], options: Mapping[str, Sequence[Configuration]], fleet: Fleet
) -> Solution:
    return Solution(greedy(demands, options, fleet), None)


def _borders(asked: "_Asked") -> list[_Group]:
    """Merge two at a time while it pays; what is merged now stays so unless a split pays as much."""
    now, best = _merged_now(asked.alone, asked.question.merged), _merge_all(asked)
    if {g.host.name: len(g.pools) for g in now} == {g.host.name: len(g.pools) for g in best}:
        return now
    before, after = (asked.planned(groups, _quick) for groups in (now, best))
    if before.short and not after.short:
        return best
    return best if after.watts <= (1.0 - WORTH) * before.watts else now


def _merge_all(asked: "_Asked") -> list[_Group]:
    groups, watts = asked.alone, asked.cost(asked.alone)
    while True:
        tried = [
            [g for g in groups if g not in (host, guest)] + [_Group(host.host, host.pools + guest.pools)]
            for host, guest in permutations(groups, 2)
            if all(host.host.takes(pool) for pool in guest.pools)
        ]
        costs = [(asked.cost(each), i) for i, each in enumerate(tried)]
        if not costs or min(costs)[0] > (1.0 - WORTH) * watts:
            return groups
        watts, chosen = min(costs)
        groups = tried[chosen]


def _merged_now(alone: list[_Group], merged: Mapping[str, str]) -> list[_Group]:
    by_name = {group.host.name: group.host for group in alone}
    members: dict[str, tuple[PoolNeed, ...]] = {}
    for name, pool in by_name.items():
        host = merged.get(name, name)
        members[host] = (*members.get(host, ()), pool)
    return [_Group(by_name[host], pools) for host, pools in members.items()]


class _Asked:
    """A question about one stock. What serves a group of pools is worked out once for all borders."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.alone = [_Group(pool, (pool,)) for pool in question.pools]
        self._stock = _together(question.pools)
        self._found: dict[tuple[str, ...], list[Configuration]] = {}

    def cost(self, groups: list[_Group]) -> float:
        """Watts; what cannot be served costs most."""
        made = self.planned(groups, _quick)
        return made.watts if not made.short else 1e9 * (1 + len(made.short)) + made.watts

    def planned(self, groups: list[_Group], solve: Solve) -> Provision:
        """One plan for pools that share the stock."""
        stock = self._stock
        merged = {p.name: g.host.name for g in groups for p in g.pools if p is not g.host}
        busy = {g.host.name: g for g in groups if g.demand is not None}
        demands = {name: group.expected for name, group in busy.items()}
        options = {name: self._configurations(group) for name, group in busy.items()}
        fleet = _fleet(stock, sum(g.least for g in busy.values()), self.question.epoch)
        found = solve(demands, options, fleet) if busy else Solution(Plan(()), 0.0)
        counts = {group.host.name: group.least for group in groups}
        if found.plan is not None:
            for name in busy:
                number = sum(n for of, _, n in found.plan.counts if of == name)
                counts[name] = max(counts[name], number)
        have = sum(each.have for each in stock)
        if found.plan is None or sum(counts.values()) > have:  # everything runs, shared by load
            return Provision(_by_load(groups, have), merged, _all_watts(stock), None, tuple(busy))
        idle = sum(max(0, counts[g.host.name]) for g in groups if g.host.name not in busy)
        watts = found.plan.watts + idle * _idle_watts(stock)
        return Provision(counts, merged, watts, found.gap, ())

    def _configurations(self, group: _Group) -> list[Configuration]:
        names = tuple(pool.name for pool in group.pools)  # the first is the host, whose objectives hold
        if names not in self._found:
            demand, rules = group.demand, self.question.rules
            assert demand is not None
            self._found[names] = [one for s in self._stock for one in _options(s, group, demand, rules)]
        return self._found[names]


def _options(stock: Stock, group: _Group, demand: Demand, rules: PlanRules) -> list[Configuration]:
    """What stopping it would free is what it costs."""
    free, tpot = stock.stopped_watts * stock.kind.tp, group.host.objectives.tpot
    return [
        replace(one, watts=max(LEAST_WATTS, one.watts - free))
        for one in configurations(stock.kind, demand, group.expected, tpot, rules)
    ]


def _fleet(stock: tuple[Stock, ...], least: int, epoch: Seconds) -> Fleet:
    return Fleet(
        gpus=sum(each.have * each.kind.tp for each in stock),
        running={each.kind.name: each.up for each in stock},
        start_joules={each.kind.name: each.start_joules for each in stock},
        stop_joules={each.kind.name: each.stop_joules for each in stock},
        epoch=epoch,
        least=min(least, sum(each.have for each in stock)),
        most={each.kind.name: each.have for each in stock},
    )


def _together(pools: Sequence[PoolNeed]) -> tuple[Stock, ...]:
    """The stock of all pools, by kind."""
    found: dict[str, Stock] = {}
    for each in (stock for pool in pools for stock in pool.stock):
        other = found.get(each.kind.name)
        if other is not None:
            have = other.have + each.have
            tokens = (other.session_tokens * other.have + each.session_tokens * each.have) / have
            each = replace(other, have=have, up=other.up + each.up, session_tokens=tokens)
        found[each.kind.name] = each
    return tuple(found.values())


def _by_load(groups: Sequence[_Group], have: int) -> dict[str, int]:
    """All instances, by the tokens that each group is asked for; nobody gets less than its least."""
    work = {g.host.name: 0.0 if g.demand is None else _work(g.demand) for g in groups}
    counts = {g.host.name: g.least for g in groups}
    for _ in range(have - sum(counts.values())):
        neediest = max(counts, key=lambda name: work[name] / (counts[name] + 0.5))
        counts[neediest] += 1
    return counts


def _work(demand: Demand) -> float:
    """Decode steps, prompts as the work they are (400 prompt tokens ~ one step of a sequence)."""
    return demand.rate * (demand.output_tokens + demand.input_tokens / 400.0)


def _idle_watts(stock: Sequence[Stock]) -> float:
    """Of one instance that runs without work, above what it draws stopped: of the cheapest kind."""
    return min(max(0.0, s.kind.model.idle_watts - s.stopped_watts) * s.kind.tp for s in stock)


def _all_watts(stock: Sequence[Stock]) -> float:
    """Everything running at its idle watts: the least that it costs."""
    return sum(s.have * max(0.0, s.kind.model.idle_watts - s.stopped_watts) * s.kind.tp for s in stock)
