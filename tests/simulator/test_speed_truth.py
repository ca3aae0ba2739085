"""What the gateway learns of an engine's speed, beside the simulated engine that is its profile exactly."""

import random

import orjson
import pytest

from control.state import Flight, Instance, Limits, LoadBook
from joulegate.domain import RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds
from router.speed import Speed
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.jobs import Job

PROFILE = parse_profile(orjson.loads(shipped("profiles/a100-40g_llama-3.1-8b_tp1.json").read_bytes()))
TICK = 0.25
KIND = RequestType(Size.M, Size.M)


class Watched:
    """An engine under Poisson arrivals, and what a gateway sees of it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.costs = EngineCosts(PROFILE)
        self.engine = Engine(self.costs, PROFILE.max_clock, 0.0)
        self.law = Instance("i", "p", LoadBook(), Limits(chunk_budget=2048), self.costs.model)
        self.law.telemetry_at = Seconds(0.0)
        self.speed = Speed(self.costs.model)
        self.flights: dict[int, Flight] = {}
        self.last: dict[int, float] = {}

    def run(self, seconds: float, rate: float, longest: int) -> None:
        now, arrival, tick, serial = 0.0, self.dice.expovariate(rate), TICK, 0
        while now < seconds:
            end = self.engine.begin(now)
            now = min(arrival, tick) if end is None else end
            if end is not None:
                self._tokens(end)
            while arrival <= now:
                serial += 1
                self._arrive(serial, self.dice.randrange(100, longest), arrival)
                arrival += self.dice.expovariate(rate)
            while tick <= now:
                self.speed.tick(self.law, Seconds(now))
                tick += TICK

    def _arrive(self, key: int, prompt: int, at: float) -> None:
        flight = Flight(str(key), KIND, prompt, prompt, 200.0, 300.0, Seconds(at), Seconds(1.0), Seconds(1.0))
        self.flights[key] = flight
        self.law.book.send(flight, Seconds(at))
        self.engine.submit(Job(key, prompt, self.dice.randrange(50, 350)), at)

    def _tokens(self, end: float) -> None:
        """An iteration is over: what the streams show."""
        window, book = self.speed.window, self.law.book
        producers = self.engine.producers()
        ended = self.engine.complete().finished
        for job in producers:
            flight = self.flights[job.key]
            if flight.first_token is None:
                window.prompts.append(flight.uncached_tokens)
            else:
                window.gaps += end - self.last[job.key]
                window.events += 1
            self.last[job.key] = end
            book.progress(flight, 1.0, Seconds(end))
        for job in ended:
            book.close(self.flights[job.key])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "longest"), [(1.0, 1500), (3.0, 1500), (1.0, 7000)])
def test_an_engine_that_is_its_profile_needs_no_correction(seed: int, rate: float, longest: int) -> None:
    """Prompts longer than a chunk are read over several windows: that is not slowness."""
    watched = Watched(seed)
    watched.run(240.0, rate, longest)
    assert watched.law.correction == pytest.approx(1.0, abs=0.03)
    assert watched.law.model_error < 0.1
