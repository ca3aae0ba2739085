"""What the floor of the load takes a load of short prompts to be, against the engine that serves it."""

import json
from pathlib import Path

import numpy as np
import pytest

from control.floor import Demand, settle
from joulegate.domain import Objectives
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds
from simulator.cluster import Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.score import Everyone, Scorer
from simulator.workload import Load

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"
COSTS = EngineCosts(parse_profile(json.loads(PROFILE.read_text())))
CLOCKS = COSTS.profile.clocks
SETUP = Setup((COSTS,), Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None))
SPAN = Seconds(40.0)


@pytest.mark.parametrize("clock", [CLOCKS[-1], CLOCKS[2 * len(CLOCKS) // 3]])
@pytest.mark.parametrize(("rate", "prompt", "answer"), [(160, 100, 3), (60, 300, 3), (20, 400, 200)], ids=str)
def test_prompts_that_share_iterations(rate: int, prompt: int, answer: int, clock: MegaHertz) -> None:
    """At the first load an iteration for every prompt would take more than all the time."""
    count = round(rate * SPAN)
    at = np.sort(np.random.default_rng(1).uniform(0.0, SPAN, count))
    every = Everyone()
    load = Load(at, np.full(count, prompt), np.full(count, answer), SPAN)
    run = run_fixed(load, SETUP, clock, Scorer(SETUP.objectives, SETUP.cuts, hear=every.hear))
    demand = Demand(rate, prompt, prompt, answer)
    steady = settle(COSTS.model, demand, clock, COSTS.profile.engine.max_num_batched_tokens)
    assert steady.in_system == pytest.approx(every.all().e2e.sum() / SPAN, rel=0.15)
    assert steady.watts == pytest.approx(run.joules_released / run.span, rel=0.15)
