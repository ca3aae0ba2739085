"""Pure: how many instances the pools of a simulated fleet run, and which pools share them.

As `router.planning` does it, by the same laws: `control.sizing` for every pool; where pools are elastic, once
an epoch the load forecast is asked for the next peak, `control.provision` for borders and counts, and
`control.labels` for whose the instances are until then. What the gateway's child takes a second for is there
at once, and its solver has no limit of time, so that the same seed gives the same run on every machine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from control.floor import Demand
from control.labels import labels, served
from control.planner import PlanRules, Stock
from control.provision import Provision, Question, Solve, provision
from control.sizing import LOOK, Growth, Seen, Sizing, Terms, length_bias
from control.state import Flight, PoolRules
from control.steering import Steering
from joulegate.units import Seconds
from predictor.forecast import EpochLoad, LoadForecast
from router.capacity import present
from router.load_meter import PARTS, LoadMeter
from router.plan_question import Coming, by_type, need_of
from simulator.sites import Sites, Standing
from simulator.workload import Foresight

RESCALE_EVERY = 1.0  # seconds between two looks at how many instances should run
RATED_OVER = 15.0  # seconds; what counts as the load of a moment


@dataclass(frozen=True, slots=True)
class Elastic:
    """Pools share instances while that saves."""

    epoch: Seconds
    cover: float  # share of the epochs whose peak the load forecast should cover
    solve: Solve


@dataclass(frozen=True, slots=True)
class Scaling:
    """Instances of one kind come and go by the gateway's law."""

    stock: Stock
    rules: PlanRules
    calm: Seconds
    at_once: int  # stops
    elastic: Elastic | None = None  # None: pools stay apart


@dataclass(slots=True, eq=False)
class Planned:
    """What planning takes from one run into the next."""

    growth: dict[str, Growth] = field(default_factory=dict)  # of each pool's load
    standing: tuple[Standing, ...] = ()  # of the instances when the last run ended
    merged: dict[str, str] = field(default_factory=dict)  # pool -> the one it is part of
    forecast: LoadForecast | None = None
    epochs: int = 0  # learned


class Planning:
    """`lengths`: output tokens that came and that were predicted, of requests that ended lately."""

    def __init__(
        self,
        scaling: Scaling,
        homes: Sequence[PoolRules],
        sites: Sites,
        steering: Steering,
        planned: Planned,
        lengths: Collection[tuple[float, float]],
    ) -> None:
        self.due = 0.0
        self.foresight: Foresight | None = None  # an oracle's
        self._scaling = scaling
        self._homes = homes
        self._sites = sites
        self._steering = steering
        self._planned = planned
        self._lengths = lengths
        growth = planned.growth
        self._sizes = {
            rules.name: Sizing(scaling.calm, growth.setdefault(rules.name, Growth())) for rules in homes
        }
        self._meter = LoadMeter()
        self._part_from, self._parts = 0.0, 0

    def came(self, flight: Flight) -> None:
        """A request has arrived."""
        if self._scaling.elastic is not None:
            self._meter.add(flight.type, flight.uncached_tokens, flight.output_q50)

    def tick(self, now: float) -> bool:
        """Whether other pools share their instances from now on."""
        elastic = self._scaling.elastic
        moved = elastic is not None and self._divide(elastic, now)
        if now >= self.due:
            self.due = now + RESCALE_EVERY
            for name, sizing in self._sizes.items():
                self._aim(name, sizing, Seconds(now))
        return moved

    def _aim(self, pool: str, sizing: Sizing, now: Seconds) -> None:
        """Start or stop instances of one pool."""
        state, scaling = self._steering.pools[pool], self._scaling
        stock, up = replace(scaling.stock, have=self._sites.have(pool)), self._sites.count(pool)
        if not stock.have:
            return  # it is part of another
        if sizing.due(now):
            load = state.demand(now)
            ahead = None if load is None else self._ahead(load, now)
            seen = Seen(load, Seconds(state.arrivals.age(now)), length_bias(self._lengths), ahead)
            terms = Terms(state.queue.rules.objectives.tpot, state.prices.price, scaling.rules)
            sizing.look((stock,), seen, up, terms, now)
        laws = [station.law for station in self._sites.stations if station.law.pool == pool]
        needed = max(1, present(laws, len(state.queue)))
        self._sites.turn(pool, min(stock.have, sizing.count(up, needed, now)), scaling.at_once, now)

    def _ahead(self, load: Demand, now: float) -> float | None:
        """What an oracle knows of the time until an instance that is started after the next look serves."""
        if self.foresight is None:
            return None
        return self.foresight.most(now, self._scaling.stock.kind.start + LOOK + RATED_OVER, load)

    def _divide(self, elastic: Elastic, now: float) -> bool:
        """At the end of an epoch, learn and plan; whether anything changed."""
        if now - self._part_from < elastic.epoch / PARTS:
            return False
        self._meter.close_part(now - self._part_from)
        self._part_from, self._parts = now, self._parts + 1
        load = self._meter.epoch() if self._parts % PARTS == 0 else None
        return load is not None and self._arrange(self._plan(elastic, load), Seconds(now))

    def _plan(self, elastic: Elastic, load: EpochLoad) -> Provision:
        planned, epoch = self._planned, elastic.epoch
        forecast = planned.forecast = planned.forecast or LoadForecast(epoch, elastic.cover)
        forecast.observe(Seconds(planned.epochs * epoch), load)
        planned.epochs += 1
        peak = forecast.forecast(Seconds(planned.epochs * epoch))
        coming = Coming(by_type(load.mean), by_type(peak), length_bias(self._lengths), epoch)
        needs = tuple(need_of(home, coming, (self._stock(home.name),), 1) for home in self._homes)
        return provision(Question(needs, planned.merged, epoch, self._scaling.rules), elastic.solve)

    def _stock(self, home: str) -> Stock:
        """Of a pool as it is configured."""
        mine = [each for each in self._sites.labelled if each.home == home]
        return replace(self._scaling.stock, have=len(mine), up=sum(each.up for each in mine))

    def _arrange(self, plan: Provision, now: Seconds) -> bool:
        """Pools as the plan has them. What runs in each by then counts as asked for: none stops at once."""
        here = self._sites.labelled
        wanted = labels(here, plan.counts, plan.merged)
        if all(wanted[each.name] == each.pool for each in here) and self._planned.merged == plan.merged:
            return False
        self._planned.merged = dict(plan.merged)
        self._sites.move(wanted)
        before = {name: state.queue.rules for name, state in self._steering.pools.items()}
        self._steering.relabel(served(self._homes, plan.merged))
        for guest, host in plan.merged.items():
            self._rehome(guest, host)
        for name, sizing in self._sizes.items():
            if self._steering.pools[name].queue.rules.types != before[name].types:
                sizing.restart(now)
            up = self._sites.count(name)
            sizing.count(up, up, now)
        return True

    def _rehome(self, guest: str, host: str) -> None:
        """What waits in `guest` waits in `host` from now on."""
        pools, rules = self._steering.pools, self._steering.admission
        for flight in pools[guest].queue.every(1, 0):
            pools[guest].queue.remove(flight)
            pools[host].queue.push(flight, rules)
