"""Pure: the instances of a simulated fleet as they come and go, and what they cost while they do.

An instance that is started draws `p_start_w` per GPU until it serves; one that is stopped gets no new
requests, finishes those it has, and is off. "Released": a GPU that is off costs nothing. "Owned": it draws
`p_off_owned_w`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.costs import EngineCosts
from simulator.histogram import Histogram
from simulator.jobs import Job
from simulator.results import Run, bucket_bounds
from simulator.station import BIN, Station
from simulator.workload import Load


@dataclass(frozen=True, slots=True)
class _Start:
    name: str
    costs: EngineCosts
    ordered: float
    ready: float


class Sites:
    """All instances of one run."""

    def __init__(self, costs: Sequence[EngineCosts], places: Sequence[str] = ()) -> None:
        pools = places or ["all"] * len(costs)
        self.stations = [
            Station(f"i{n}", pool, one, 0.0) for n, (one, pool) in enumerate(zip(costs, pools, strict=True))
        ]
        self._named = len(self.stations)
        self._starting: list[_Start] = []
        self._stopped: list[Station] = []
        self._start_joules = 0.0
        self._gpu_seconds = 0.0  # of instances that have left, and of starts
        self._joules: list[float] = []
        self._instances: list[float] = []

    @property
    def serving(self) -> list[Station]:
        return [station for station in self.stations if station.law.ready]

    @property
    def count(self) -> int:
        """Instances that take requests, now or once they are up."""
        return len(self.serving) + len(self._starting)

    def start(self, costs: EngineCosts, now: float) -> None:
        seconds = costs.profile.actuation.instance_start_s
        self._starting.append(_Start(f"i{self._named}", costs, now, now + seconds))
        self._named += 1

    def stop_one(self) -> None:
        """The emptiest instance takes no more requests."""
        emptiest = min(self.serving, key=lambda station: station.law.book.running)
        emptiest.law.ready = False

    def step(self, now: float) -> tuple[list[Station], list[Station]]:
        """Starts that are done and stops that are done by `now`: (came, left)."""
        came, left = [], []
        for start in [s for s in self._starting if s.ready <= now]:
            self._starting.remove(start)
            profile = start.costs.profile
            self._start_joules += profile.tp * profile.power.p_start_w * (start.ready - start.ordered)
            self._gpu_seconds += profile.tp * (start.ready - start.ordered)
            came.append(Station(start.name, "all", start.costs, now))
        for station in [s for s in self.stations if not s.law.ready and not s.jobs]:
            station.settle(now)
            self._gpu_seconds += station.profile.tp * (now - station.started)
            self._stopped.append(station)
            left.append(station)
        self.stations = [s for s in self.stations if s not in left] + came
        return came, left

    def note(self, now: float) -> None:
        """Once a BIN: energy and instances for the timelines."""
        while now >= BIN * len(self._joules):
            self._joules.append(self._spent(now))
            self._instances.append(float(len(self.stations) + len(self._starting)))

    def result(self, load: Load, jobs: Sequence[Job], end: float, owned_gpus: float | None) -> Run:
        """The run, measured from zero to `end`. `owned_gpus` None: those it began with."""
        gaps, residency = Histogram(bucket_bounds()), dict[int, float]()
        for station in self.stations:
            station.settle(end)
        everyone = [*self.stations, *self._stopped]
        for station in everyone:
            gaps.add(station.engine.gaps)
            for clock, seconds in station.residency.items():
                residency[clock] = residency.get(clock, 0.0) + seconds
        spent = self._spent(end)
        on = self._gpu_seconds + sum(s.profile.tp * (end - s.started) for s in self.stations)
        off = max(0.0, (owned_gpus or 0.0) * end - on)
        first = np.array([job.first_token_at for job in jobs])
        last = np.array([job.finished_at for job in jobs])
        output = np.array([job.output_tokens for job in jobs], dtype=np.int64)
        unserved = np.isnan(last)
        steps = np.maximum(1, output - 1)
        return Run(
            input=load.input,
            output=output,
            ttft=np.where(unserved, np.inf, first - load.at),
            tpot=np.where(unserved, np.inf, np.where(output > 1, (last - first) / steps, 0.0)),
            e2e=np.where(unserved, np.inf, last - load.at),
            gaps=gaps,
            joules_released=spent,
            joules_owned=spent + off * everyone[0].profile.power.p_off_owned_w,
            span=end,
            gpus_avg=on / end if end > 0.0 else 0.0,
            clock_changes=sum(station.changes for station in everyone),
            residency=residency,
            watts=np.diff(np.array(self._joules)) / BIN,
            instances=np.array(self._instances),
        )

    def _spent(self, now: float) -> float:
        """Joules so far, instances that are starting included."""
        engines = sum(float(s.engine.energy) for s in (*self.stations, *self._stopped))
        starting = sum(
            s.costs.profile.tp * s.costs.profile.power.p_start_w * (now - s.ordered) for s in self._starting
        )
        return engines + self._start_joules + starting
