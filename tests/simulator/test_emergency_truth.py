"""The last rungs of the emergency ladder in simulated time: one of two engines stands still for a while."""

import random

import orjson

from control.admission import AdmissionRules, Grant
from control.emergency import Rung, relieve
from control.governor import GovernorRules
from control.state import Flight
from control.steering import Steering
from joulegate.domain import Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds
from simulator.cluster import Setup, pools_of
from simulator.costs import EngineCosts
from simulator.jobs import Job
from simulator.station import Station

PROFILE = parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes()))
OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
STILL = (5.0, 20.0)  # seconds
KIND = RequestType(Size.S, Size.M)
STEP = 0.01


class Pair:
    """Two engines behind the laws; `rescues`: what is not answered in time is taken back."""

    def __init__(self, rescues: bool) -> None:
        self.rescues = rescues
        costs = EngineCosts(PROFILE)
        self.stations = [Station(f"i{n}", "all", costs, 0.0) for n in range(2)]
        self.now = 0.0
        self.stations[0].engine._noise = self._factor
        self.steering = Steering(
            pools_of(Setup((costs, costs), OBJECTIVES)),
            [station.law for station in self.stations],
            AdmissionRules(),
            GovernorRules(),
            random.Random(1).randrange,
        )
        self.jobs: list[tuple[float, Job]] = []

    def _factor(self) -> float:
        """An iteration that begins while the engine stands still ends when it moves again."""
        return 1e3 * (STILL[1] - self.now) if STILL[0] <= self.now < STILL[1] else 1.0

    def run(self, seconds: float, rate: float) -> int:
        """How many of those that came got their first token within a second."""
        dice = random.Random(2)
        arrival, tick = dice.expovariate(rate), 0.25
        while self.now < seconds:
            self.now += STEP
            for station in self.stations:
                station.advance(self.now)
            while arrival <= self.now < seconds - 10.0:
                self._arrive(Job(len(self.jobs), 150, 60))
                arrival += dice.expovariate(rate)
            self._send(self.steering.assign(Seconds(self.now)).grants)
            if self.now >= tick:
                tick += 0.25
                self._tick()
        return sum(job.first_token_at - at <= 1.0 for at, job in self.jobs)

    def _arrive(self, job: Job) -> None:
        self.jobs.append((self.now, job))
        self._send(self.steering.arrive(self._flight(job, self.now), "all", Seconds(self.now)).grants)

    def _flight(self, job: Job, arrived: float, avoid: str = "") -> Flight:
        made = Flight(str(job.key), KIND, 150, 150, 60.0, 90.0, Seconds(arrived), Seconds(0.25), Seconds(0.1))
        made.avoid = avoid
        return made

    def _send(self, grants: tuple[Grant, ...]) -> None:
        for grant in grants:
            station = next(one for one in self.stations if one.law is grant.instance)
            station.send(self.jobs[int(grant.flight.id)][1], grant.flight, self.now)

    def _tick(self) -> None:
        laws = [station.law for station in self.stations]
        for station in self.stations:
            station.look(self.now, one_by_one=False)
            station.set_clock(self.steering.tick(station.law, Seconds(self.now)).clock, self.now)
        for station in self.stations if self.rescues else ():
            others = [law for law in laws if law is not station.law]
            for relief in relieve(station.law, others, shed=False, now=Seconds(self.now)):
                assert relief.rung is Rung.RESTEER
                station.law.suspect = station.law.suspect or relief.stuck
                self._move(station, relief.flight)

    def _move(self, station: Station, flight: Flight) -> None:
        """As the gateway does: the engine sees its client go, the other gets the request anew."""
        job, _ = station.jobs.pop(int(flight.id))
        station.engine.cancel(job)
        station.law.book.close(flight)
        fresh = Job(job.key, job.prompt_tokens, job.output_tokens)
        at = self.jobs[job.key][0]
        self.jobs[job.key] = (at, fresh)
        again = self._flight(fresh, at, station.law.name)
        self._send(self.steering.arrive(again, "all", Seconds(self.now)).grants)


def test_what_stood_before_an_engine_that_stands_still_is_served_by_the_other() -> None:
    left, rescued = Pair(rescues=False), Pair(rescues=True)
    in_time, all_of_them = left.run(40.0, 6.0), len(left.jobs)
    saved = rescued.run(40.0, 6.0)
    assert all_of_them == len(rescued.jobs) > 100
    assert all(job.finished_at == job.finished_at for _, job in rescued.jobs), "nobody is lost"
    assert in_time < 0.7 * all_of_them
    assert saved > 0.98 * all_of_them
