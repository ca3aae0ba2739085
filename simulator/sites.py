"""Pure: the instances of a simulated fleet as they come and go, and what they cost while they do.

An instance that is started draws `p_start_w` per GPU until it serves; one that is stopped gets no new
requests, finishes those it has, and is off. "Released": a GPU that is off costs nothing. "Owned": it draws
`p_off_owned_w`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from control.labels import Labelled
from control.lifecycle import Phase
from control.turnout import Candidate, movers, turnout
from simulator.costs import EngineCosts
from simulator.histogram import Histogram
from simulator.results import Run, bucket_bounds
from simulator.score import Score
from simulator.station import BIN, Station
from simulator.workload import Floats

ONE_POOL = "all"
MOST = 16_384  # figures of a timeline


@dataclass(frozen=True, slots=True)
class Standing:
    """An instance before a run, or after it."""

    costs: EngineCosts
    home: str = ONE_POOL  # the pool it is configured in
    pool: str = ONE_POOL
    up: bool = True


@dataclass(slots=True, eq=False)
class _Place:
    """Where an instance runs, is started, or rests."""

    name: str
    home: str
    pool: str
    costs: EngineCosts
    station: Station | None = None
    ordered: float | None = None  # when its start was asked for, until it serves

    @property
    def phase(self) -> Phase:
        if self.station is not None:
            return Phase.SERVING if self.station.law.ready else Phase.DRAINING
        return Phase.STOPPED if self.ordered is None else Phase.STARTING

    @property
    def up(self) -> bool:
        """It takes requests, now or once it has started."""
        return self.phase in (Phase.SERVING, Phase.STARTING)


class Totals:
    """What instances have come to that are gone."""

    def __init__(self) -> None:
        self.gaps = Histogram(bucket_bounds())
        self.residency: dict[int, float] = {}  # MHz -> seconds
        self.changes = 0
        self.joules = 0.0

    def add(self, station: Station) -> None:
        self.gaps.add(station.engine.gaps)
        for clock, seconds in station.residency.items():
            self.residency[clock] = self.residency.get(clock, 0.0) + seconds
        self.changes += station.changes
        self.joules += station.engine.energy


class Timeline:
    """Energy and instances as time goes by: a figure each step, which doubles when there are MOST of them."""

    def __init__(self) -> None:
        self.step = BIN
        self.joules: list[float] = []  # so far
        self.instances: list[float] = []

    @property
    def due(self) -> float:
        """When the next figures are."""
        return self.step * len(self.joules)

    @property
    def watts(self) -> Floats:
        return np.diff(np.array(self.joules)) / self.step

    def add(self, joules: float, instances: float) -> None:
        self.joules.append(joules)
        self.instances.append(instances)
        if len(self.joules) == MOST:
            self.step *= 2.0
            self.joules, self.instances = self.joules[::2], self.instances[::2]


class Sites:
    """All instances of one run."""

    def __init__(self, standing: Iterable[Standing]) -> None:
        self._places = list[_Place]()
        for n, each in enumerate(standing):
            place = _Place(f"i{n}", each.home, each.pool, each.costs)
            place.station = Station(place.name, place.pool, place.costs, 0.0) if each.up else None
            self._places.append(place)
        self.stations = [place.station for place in self._places if place.station is not None]
        self._gone = Totals()
        self._start_joules = 0.0
        self._gpu_seconds = 0.0  # of instances that have left, and of starts
        self._timeline = Timeline()

    @property
    def standing(self) -> tuple[Standing, ...]:
        """As they are now; what is being started is up, what drains is not."""
        return tuple(Standing(place.costs, place.home, place.pool, place.up) for place in self._places)

    @property
    def labelled(self) -> list[Labelled]:
        """As the law of borders sees them."""
        return [
            Labelled(p.name, p.costs.profile.name, p.pool, p.home, p.phase is Phase.SERVING)
            for p in self._places
        ]

    def have(self, pool: str) -> int:
        """Instances of a pool, whether they run or not."""
        return sum(place.pool == pool for place in self._places)

    def count(self, pool: str) -> int:
        """Instances of a pool that take requests, now or once they are up."""
        return sum(place.pool == pool and place.up for place in self._places)

    def move(self, pools: Mapping[str, str]) -> None:
        """Every instance to its pool: a label moves, and what it serves it serves to the end."""
        for place in self._places:
            place.pool = pools[place.name]
            if place.station is not None:
                place.station.law.pool = place.pool

    def turn(self, pool: str, count: int, at_once: int, now: float) -> None:
        """Start and stop, so that `count` run: which ones and when is the gateway's law."""
        places = [place for place in self._places if place.pool == pool]
        candidates = [Candidate(place.name, place.phase) for place in places]
        wanted = turnout(candidates, count)
        may_move = movers(candidates, wanted, at_once)
        for place in places:
            if place.station is not None and place.name in wanted:
                place.station.law.ready = True  # had back, where it was draining
            elif place.station is not None and place.name in may_move:
                place.station.law.ready = False
            elif place.name in may_move:
                place.ordered = now

    def step(self, now: float) -> tuple[list[Station], list[Station]]:
        """Starts that are done and stops that are done by `now`: (came, left)."""
        came, left = list[Station](), list[Station]()
        for place in self._places:
            profile, station = place.costs.profile, place.station
            if place.ordered is not None and place.ordered + profile.actuation.instance_start_s <= now:
                self._start_joules += profile.tp * profile.power.p_start_w * (now - place.ordered)
                self._gpu_seconds += profile.tp * (now - place.ordered)
                place.ordered, place.station = None, Station(place.name, place.pool, place.costs, now)
                came.append(place.station)
            elif station is not None and not station.law.ready and not station.jobs:
                station.settle(now)
                self._gpu_seconds += profile.tp * (now - station.started)
                self._gone.add(station)
                left.append(station)
                place.station = None
        if came or left:
            self.stations = [place.station for place in self._places if place.station is not None]
        return came, left

    def note(self, now: float) -> None:
        """Once a step of the timeline: energy and instances."""
        while now >= self._timeline.due:
            self._timeline.add(
                self._spent(now), float(sum(p.phase is not Phase.STOPPED for p in self._places))
            )

    def result(self, score: Score, end: float, owned_gpus: float | None) -> Run:
        """The run, measured from zero to its last request; the end of it. `owned_gpus` None: none are off."""
        spent, whole = self._spent(end), self._gone
        on = self._gpu_seconds + sum(s.profile.tp * (end - s.started) for s in self.stations)
        off = max(0.0, (owned_gpus or 0.0) * end - on)
        for station in self.stations:
            station.settle(end)
            whole.add(station)
        return Run(
            score=score,
            gaps=whole.gaps,
            joules_released=spent,
            joules_owned=spent + off * self._places[0].costs.profile.power.p_off_owned_w,
            span=end,
            gpus_avg=on / end if end > 0.0 else 0.0,
            clock_changes=whole.changes,
            residency=whole.residency,
            step=self._timeline.step,
            watts=self._timeline.watts,
            instances=np.array(self._timeline.instances),
        )

    def _spent(self, now: float) -> float:
        """Joules so far, instances that are starting included."""
        engines = sum(float(s.engine.energy) for s in self.stations) + self._gone.joules
        starting = sum(
            p.costs.profile.tp * p.costs.profile.power.p_start_w * (now - p.ordered)
            for p in self._places
            if p.ordered is not None
        )
        return engines + self._start_joules + starting
