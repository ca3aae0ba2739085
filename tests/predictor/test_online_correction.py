"""The correction of one instance: it follows, it stays inside its clip, it never undoes monotony."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.units import MegaHertz, Seconds
from predictor.online import Correction, CorrectionSettings
from predictor.online_drift import Drift, DriftDetector, DriftSettings, RefitReason, refit_reason

CLOCKS = tuple(MegaHertz(f) for f in range(705, 1411, 15))
SETTINGS = CorrectionSettings()


def test_an_engine_20_pct_slower_is_followed_within_60_s_of_ticks() -> None:
    rng = random.Random(1)
    correction = Correction(CLOCKS, SETTINGS)
    for _ in range(240):
        correction.observe(Seconds(0.02), Seconds(0.024 * rng.gauss(1.0, 0.03)), 1200)
    assert correction.factor(1200) == pytest.approx(1.2, abs=0.04)


def test_slower_is_believed_sooner_than_faster() -> None:
    slow, fast = Correction(CLOCKS, SETTINGS), Correction(CLOCKS, SETTINGS)
    for _ in range(5):
        slow.observe(Seconds(1.0), Seconds(1.2), 1200)
        fast.observe(Seconds(1.2), Seconds(1.0), 1200)
    assert slow.factor(1200) - 1.0 > 1.5 * (1.0 - fast.factor(1200))


def test_a_step_is_followed_within_two_seconds_of_ticks_and_a_stall_is_not() -> None:
    rng = random.Random(5)
    correction = Correction(CLOCKS, SETTINGS)
    for _ in range(400):
        correction.observe(Seconds(0.02), Seconds(0.02 * rng.gauss(1.0, 0.03)), 1200)
    correction.observe(Seconds(0.02), Seconds(0.03), 1200)
    assert correction.factor(1200) < 1.1
    for _ in range(100):
        correction.observe(Seconds(0.02), Seconds(0.02 * rng.gauss(1.0, 0.03)), 1200)
    for _ in range(8):
        correction.observe(Seconds(0.02), Seconds(0.024 * rng.gauss(1.0, 0.03)), 1200)
    assert correction.factor(1200) > 1.15


def test_a_band_never_visited_moves_with_the_rest() -> None:
    correction = Correction(CLOCKS, SETTINGS)
    for _ in range(100):
        correction.observe(Seconds(1.0), Seconds(1.2), 1400)
    assert correction.factor(720) > 1.1


def test_the_error_it_reports_is_the_p95_of_what_it_leaves() -> None:
    rng = random.Random(2)
    correction = Correction(CLOCKS, SETTINGS)
    for _ in range(5000):
        correction.observe(Seconds(1.0), Seconds(rng.gauss(1.0, 0.05)), 1200)
    assert 0.07 < correction.error_p95 < 0.15  # 1.96 sigma, and what the EWMA itself wanders


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Correction(CLOCKS, SETTINGS).observe(Seconds(1.0), Seconds(seconds), 1200)
    with pytest.raises(ValueError, match="positive"):
        DriftDetector(DriftSettings()).observe(Seconds(1.0), Seconds(seconds), Seconds(0.0))


observations = st.lists(st.tuples(st.floats(0.01, 100.0), st.sampled_from(CLOCKS)), max_size=60)


@settings(deadline=None)  # a loaded machine is no failure
@given(observations)
def test_whatever_it_sees_the_corrected_model_stays_monotone_and_clipped(
    seen: list[tuple[float, MegaHertz]],
) -> None:
    correction = Correction(CLOCKS, SETTINGS)
    for observed, clock in seen:
        correction.observe(Seconds(1.0), Seconds(observed), clock)
    assert all(SETTINGS.lowest <= correction.factor(clock) <= SETTINGS.highest for clock in CLOCKS)
    times = [correction.factor(clock) / clock for clock in CLOCKS]  # of an engine bound by its clock
    assert all(slow >= fast for slow, fast in pairwise(times))
    flat = [correction.factor(clock) for clock in CLOCKS]  # of one that does not care
    assert all(slow >= fast for slow, fast in pairwise(flat))


@pytest.mark.parametrize(("ratio", "drift"), [(1.2, Drift.SLOWER), (0.8, Drift.FASTER), (1.03, Drift.NONE)])
def test_a_lasting_change_is_drift_and_a_small_one_is_not(ratio: float, drift: Drift) -> None:
    rng = random.Random(3)
    detector = DriftDetector(DriftSettings())
    for step in range(400):
        detector.observe(Seconds(1.0), Seconds(ratio * rng.gauss(1.0, 0.05)), Seconds(step))
    assert detector.drift is drift
    detector.reset()
    assert detector.drift is Drift.NONE


@pytest.mark.parametrize("ratio", [1.25, 0.8])
def test_when_it_began_is_told_to_within_a_few_seconds(ratio: float) -> None:
    rng = random.Random(4)
    detector = DriftDetector(DriftSettings())
    for step in range(800):
        now = Seconds(0.25 * step)
        change = ratio if now >= 150.0 else 1.0
        detector.observe(Seconds(1.0), Seconds(change * rng.gauss(1.0, 0.05)), now)
    assert detector.drift is not Drift.NONE
    assert detector.since == pytest.approx(150.0, abs=3.0)


def test_one_stall_is_not_drift() -> None:
    detector = DriftDetector(DriftSettings())
    assert detector.observe(Seconds(1.0), Seconds(50.0), Seconds(0.0)) is Drift.NONE


@pytest.mark.parametrize(
    ("drift", "outside", "samples", "since", "reason"),
    [
        pytest.param(Drift.SLOWER, 0.0, 500, 400.0, RefitReason.DRIFT, id="drift"),
        pytest.param(Drift.NONE, 0.5, 500, 400.0, RefitReason.OUTSIDE, id="new work"),
        pytest.param(Drift.NONE, 0.1, 500, 400.0, None, id="all is well"),
        pytest.param(Drift.SLOWER, 0.0, 500, 100.0, None, id="just refitted"),
        pytest.param(Drift.SLOWER, 0.0, 10, 400.0, None, id="too little to learn from"),
    ],
)
def test_when_to_refit(
    drift: Drift, outside: float, samples: int, since: float, reason: RefitReason | None
) -> None:
    assert refit_reason(drift, outside, samples, Seconds(since), DriftSettings()) is reason
