"""The last rungs of the emergency ladder in simulated time: one of two engines stands still for a while."""

import random

import numpy as np
import orjson

from control.admission import AdmissionRules
from control.governor import GovernorRules
from joulegate.domain import Cuts, Objectives
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds
from predictor.length import HistoryPredictor
from simulator.cluster import Cluster, Knowledge, Laws, Setup
from simulator.costs import EngineCosts
from simulator.score import Ended, Everyone, Scorer
from simulator.station import Station
from simulator.workload import Load

COSTS = EngineCosts(parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes())))
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
STILL = (5.0, 20.0)  # seconds


class Stalling(Cluster):
    """The first of its two engines stands still; `rescues`: what it holds then is taken back."""

    def __init__(self, rescues: bool) -> None:
        laws, knowledge = Laws(AdmissionRules(), GovernorRules()), Knowledge(HistoryPredictor(Cuts()))
        super().__init__(Setup((COSTS, COSTS), AIMS), laws, knowledge, random.Random(1).randrange)
        self.rescues, self.moved = rescues, 0
        self._engine = self._sites.stations[0].engine
        self._engine._noise = self._factor

    def _factor(self) -> float:
        """On an iteration of some 10 ms: one that begins while the engine stands still ends long after."""
        return 1e3 * (STILL[1] - self._engine.now) if STILL[0] <= self._engine.now < STILL[1] else 1.0

    def _relieve(self, station: Station, now: float) -> None:
        if self.rescues:
            before = len(station.jobs)
            super()._relieve(station, now)
            self.moved += before - len(station.jobs)


def steady() -> Load:
    """Six a second for half a minute."""
    at = np.cumsum(np.random.default_rng(2).exponential(1.0 / 6.0, 180))
    return Load(at, np.full(len(at), 150), np.full(len(at), 60), Seconds(float(at[-1])))


def served(fleet: Stalling) -> Ended:
    everyone = Everyone()
    fleet.run(steady(), Scorer(AIMS, Cuts(), hear=everyone.hear))
    return everyone.all()


def test_what_stood_before_an_engine_that_stands_still_is_served_by_the_other() -> None:
    rescuing = Stalling(rescues=True)
    late, saved = served(Stalling(rescues=False)), served(rescuing)
    assert np.isfinite(saved.e2e).all(), "nobody is lost"
    assert rescuing.moved > 0
    assert np.mean(late.ttft <= 1.0) < 0.7
    assert np.mean(saved.ttft <= 1.0) > 0.95
