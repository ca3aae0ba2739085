"""How live and simulated are compared; and a few seconds of both."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.live import ROOT, Answer, Side, World, compared, plan, side_of, simulated
from joulegate.errors import UserError

GOOD = Side(100.0, 1000, 99.0, 1.0, 2.0, 1400.0)
SCENARIOS = ROOT / "configs/scenarios"


def world(saving_pct: float, attainment_pct: float = 99.0) -> World:
    return World(replace(GOOD, joules=100.0 - saving_pct, attainment_pct=attainment_pct), GOOD)


def test_a_saving_is_by_token_served() -> None:
    fewer = replace(GOOD, joules=50.0, tokens=500)
    assert World(fewer, GOOD).saving_pct == pytest.approx(0.0)
    assert world(30.0).saving_pct == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("live", "simulation", "lateness", "missed"),
    [
        pytest.param(world(30.0), world(32.9), 1.0, [], id="within the bars"),
        pytest.param(world(30.0), world(33.1), 1.0, ["savings"], id="savings apart"),
        pytest.param(world(30.0, 98.4), world(30.0), 1.0, ["attainment"], id="attainment apart"),
        pytest.param(world(30.0), world(30.0), 5.1, ["late"], id="the emulator was late"),
        pytest.param(
            World(replace(GOOD, failed=1), GOOD), world(0.0), 1.0, ["failed"], id="a request failed"
        ),
    ],
)
def test_what_is_missed_is_named(live: World, simulation: World, lateness: float, missed: list[str]) -> None:
    reasons = Answer(live, simulation, 600.0, lateness).why_not
    assert len(reasons) == len(missed)
    assert all(word in reason for word, reason in zip(missed, reasons, strict=True))


def test_idle_seconds_after_the_last_request_are_paid_for() -> None:
    short = plan(SCENARIOS / "s1-t.yaml", 0.5, perturb=False)
    run, _ = simulated(short)
    idle = short.profile.power.p_idle_w
    at_its_end, later = side_of(run, short, run.span), side_of(run, short, run.span + 10.0)
    assert later.joules == pytest.approx(at_its_end.joules + 10.0 * idle)
    assert at_its_end.tokens == int(np.sum(short.arrivals.output))


def test_a_scenario_of_many_instances_is_refused() -> None:
    with pytest.raises(UserError, match="instances"):
        plan(SCENARIOS / "s4a.yaml", 1.0, perturb=False)


@pytest.mark.slow
def test_a_few_seconds_live_draw_what_they_draw_simulated() -> None:
    short = plan(SCENARIOS / "s1-t.yaml", 0.2, perturb=False)
    found = compared(short, simulated(short))
    assert found.live.joulegate.failed == found.live.max_clock.failed == 0
    assert found.live.max_clock.tokens == found.simulated.max_clock.tokens
    assert found.live.max_clock.joules == pytest.approx(found.simulated.max_clock.joules, rel=0.05)
    assert found.live.joulegate.joules == pytest.approx(found.simulated.joulegate.joules, rel=0.05)
