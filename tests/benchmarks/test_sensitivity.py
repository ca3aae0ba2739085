"""What is made worse in the sensitivity table is made so, and the alert stands as its rule says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sensitivity import (
    FLASH,
    LAST_TURN,
    Misjudged,
    crowded,
    heard,
    in_sessions,
    told_minutes,
    variations,
)
from control.arrivals import Arrivals
from joulegate.domain import Objectives
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds
from simulator.cluster import Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.score import Everyone
from simulator.streams import constant
from simulator.workload import Load

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)


def load(rate: float, span: float) -> Load:
    three = Load(np.zeros(3), np.array([100, 800, 2000]), np.array([20, 50, 90]), Seconds(1.0))
    return constant(three, len(three), rate, Seconds(span), 1)


def test_no_two_variations_have_a_name_in_common() -> None:
    names = [one.name for one in variations(77.5)]
    assert len(set(names)) == len(names)


def test_a_flash_crowd_is_three_times_the_load_for_a_minute_and_nowhere_else() -> None:
    before = load(2.0, 1200.0)
    after = crowded(before, 3)

    def within(one: Load) -> int:
        return int(np.count_nonzero((one.at >= FLASH[0]) & (one.at < FLASH[1])))

    assert within(after) == 3 * within(before)
    assert len(after) - within(after) == len(before) - within(before)
    assert np.all(np.diff(after.at) >= 0.0)


def test_in_sessions_some_prompts_are_cached_but_for_their_last_turn() -> None:
    before = load(2.0, 1200.0)
    after = in_sessions(before, 3)
    assert after.cached is not None
    new = before.input - after.cached
    further = after.cached > 0
    assert 0.5 < further.mean() < 0.8
    assert np.all((new[further] >= LAST_TURN[0]) & (new[further] < LAST_TURN[1]))
    assert np.all(new[~further] == before.input[~further])


def test_a_misjudged_rate_is_so_many_times_what_it_is() -> None:
    right, wrong = Arrivals(), Misjudged(1.25)
    for n in range(50):
        right.add(100.0, 20.0, Seconds(0.1 * n))
        wrong.add(100.0, 20.0, Seconds(0.1 * n))
    assert wrong.rate(Seconds(5.0)) == pytest.approx(1.25 * right.rate(Seconds(5.0)))


@pytest.mark.parametrize(
    ("late_for", "minutes"), [(0.0, (0.0, 0.0)), (600.0, (0.0, 6.0)), (1500.0, (15.0, 21.0))]
)
def test_the_alert_stands_once_too_many_were_late_for_ten_minutes(
    late_for: float, minutes: tuple[float, float]
) -> None:
    setup = Setup((EngineCosts(parse_profile(json.loads(PROFILE.read_text()))),), AIMS)
    arrivals = load(1.0, 2400.0)
    everyone = Everyone()
    run = run_fixed(arrivals, setup, setup.costs[0].profile.max_clock, heard(setup, everyone))
    late = (arrivals.at >= 300.0) & (arrivals.at < 300.0 + late_for) & (np.arange(len(arrivals)) % 10 == 0)
    found = everyone.all()
    shown = told_minutes(replace(found, ttft=np.where(late, 9.0, found.ttft)), run.span, setup)
    assert minutes[0] <= shown <= minutes[1]
