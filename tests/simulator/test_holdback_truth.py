"""The saving that a holdback measures, against the saving that is true because both runs are simulated."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from control.admission import AdmissionRules
from control.governor import GovernorRules
from control.holdback import HoldbackRules, measure
from joulegate.domain import Cuts, Objectives
from joulegate.engine_profile import parse_profile
from joulegate.units import Joules, Seconds
from predictor.length import HistoryPredictor
from router.holdback_meter import HoldbackMeter
from simulator.cluster import Cluster, Knowledge, Laws, Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.jobs import Job
from simulator.station import Station
from simulator.workload import Load

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
SPAN = 1500.0


class HeldBack(Cluster):
    """One instance; blocks that are drawn run at default clocks, and each block is measured."""

    def __init__(self, setup: Setup, rules: HoldbackRules) -> None:
        laws = Laws(AdmissionRules(), GovernorRules())
        super().__init__(setup, laws, Knowledge(HistoryPredictor(Cuts())), random.Random(1).randrange)
        self.meter = HoldbackMeter("i0", rules)
        self._done = self._told_of = self._joules = 0.0

    def _arrive(self, job: Job, now: float) -> None:
        self.meter.did(float(job.prompt_tokens), 0.0)
        super()._arrive(job, now)

    def _learn(self, job: Job) -> None:
        self._done += job.output_tokens
        super()._learn(job)

    def _decide(self, station: Station, now: float) -> bool:
        raised = super()._decide(station, now)
        if not self.meter.held:
            return raised
        return self._set_clock(station, None, now)

    def _tick(self, now: float) -> None:
        super()._tick(now)
        station = self._sites.stations[0]
        out = self._done + sum(flight.tokens_out for _, flight in station.jobs.values())
        self.meter.did(0.0, out - self._told_of)
        joules = float(station.engine.energy)
        self.meter.tick(Joules(joules - self._joules), True, Seconds(now))
        self._told_of, self._joules = out, joules


def wandering(seed: int) -> Load:
    """Arrivals whose rate changes twofold within minutes."""
    draw = np.random.default_rng(seed)
    times, now = [], 0.0
    while now < SPAN:
        now += draw.exponential(1.0 / (4.0 + 1.5 * np.sin(now / 90.0)))
        times.append(now)
    count = len(times)
    return Load(np.array(times), draw.integers(20, 2000, count), draw.integers(1, 400, count), Seconds(now))


def test_the_interval_of_a_holdback_holds_the_true_saving() -> None:
    setup, load = Setup((EngineCosts(parse_profile(json.loads(PROFILE.read_text()))),), AIMS), wandering(3)
    rules = HoldbackRules(share=0.25, block=Seconds(15.0), settle=Seconds(2.0))
    held, governed = HeldBack(setup, rules), HeldBack(setup, HoldbackRules(share=0.0))
    held.run(load)
    kept, base = governed.run(load), run_fixed(load, setup, setup.costs[0].profile.max_clock)
    truth = 1.0 - (kept.joules_released / kept.span) / (base.joules_released / base.span)
    found = measure(held.meter.blocks)
    assert found is not None
    assert truth > 0.2
    assert found.low <= truth <= found.high
    assert found.ratio == pytest.approx(truth, abs=0.03)
    assert found.high - found.low < 0.15
