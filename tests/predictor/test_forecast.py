"""The load forecast: what it follows, and that it beats the plain forecasters it is judged beside."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegate.cli import COMMANDS, run
from joulegate.units import Seconds
from predictor.forecast import DAY, SHAPE, WEEK, EpochLoad, Floats, LoadForecast, observed
from predictor.forecast_evaluate import LEAST_EPOCHS, Misses, judge, misses
from predictor.forecast_synthetic import synthetic_weeks

HOUR = Seconds(3600.0)


def steady(rate: float) -> EpochLoad:
    return EpochLoad(np.full(SHAPE, rate), np.full(SHAPE, 1.5 * rate), np.full(SHAPE, rate))


def test_a_steady_load_is_forecast_at_its_peak() -> None:
    model = LoadForecast(HOUR, 0.5)
    for epoch in range(48):
        model.observe(Seconds(epoch * HOUR), steady(2.0))
    assert model.forecast(Seconds(48 * HOUR)) == pytest.approx(np.full(SHAPE, 3.0), rel=0.1)


def test_a_step_up_is_followed_within_a_few_epochs() -> None:
    model = LoadForecast(HOUR, 0.5)
    for epoch in range(48):
        model.observe(Seconds(epoch * HOUR), steady(1.0))
    for epoch in range(48, 52):
        model.observe(Seconds(epoch * HOUR), steady(4.0))
    assert (model.forecast(Seconds(52 * HOUR)) > 0.7 * 6.0).all()


def test_the_morning_is_forecast_before_it_comes() -> None:
    def load(epoch: int) -> EpochLoad:
        return steady(10.0 if 8 <= epoch % 24 < 20 else 1.0)

    model = LoadForecast(HOUR, 0.5)
    week = round(WEEK / HOUR)
    for epoch in range(2 * week + 8):
        model.observe(Seconds(epoch * HOUR), load(epoch))
    assert (model.forecast(Seconds((2 * week + 8) * HOUR)) > 7.0).all()


def test_a_higher_quantile_leaves_fewer_peaks_above() -> None:
    rng = np.random.default_rng(1)
    peaks = rng.gamma(4.0, 1.0, (400, *SHAPE))

    def above(quantile: float) -> float:
        model = LoadForecast(HOUR, quantile)
        count = 0.0
        for epoch, peak in enumerate(peaks):
            at = Seconds(epoch * HOUR)
            count += float((peak > model.forecast(at)).mean()) if epoch >= 200 else 0.0
            model.observe(at, EpochLoad(peak * 0.7, peak, peak * 0.7))
        return count / 200

    assert above(0.5) == pytest.approx(0.5, abs=0.08)
    assert above(0.9) == pytest.approx(0.1, abs=0.05)


def test_without_a_quantile_less_is_missed_and_less_wasted_than_by_the_last_peak() -> None:
    peaks = np.random.default_rng(6).gamma(4.0, 1.0, (200, *SHAPE))
    model = LoadForecast(HOUR, None)
    forecasts = []
    for epoch, peak in enumerate(peaks):
        forecasts.append(model.forecast(Seconds(epoch * HOUR)))
        model.observe(Seconds(epoch * HOUR), EpochLoad(peak * 0.7, peak, peak * 0.7))
    ours, last = misses(np.array(forecasts[20:]), peaks[20:]), misses(peaks[19:-1], peaks[20:])
    assert ours.under_forecast_pct < 0.9 * last.under_forecast_pct
    assert ours.over_provision_pct < 0.9 * last.over_provision_pct


def test_silence_is_forecast_as_silence() -> None:
    model = LoadForecast(HOUR, 0.5)
    for epoch in range(30):
        model.observe(Seconds(epoch * HOUR), steady(0.0))
    assert not model.forecast(Seconds(30 * HOUR)).any()


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 599.9), st.integers(0, 8)), min_size=1, max_size=50))
def test_every_arrival_of_a_whole_epoch_is_counted_once(arrivals: list[tuple[float, int]]) -> None:
    at = np.array([*(a for a, _ in arrivals), 600.0])
    types = np.array([*(t for _, t in arrivals), 0])
    ones = np.ones(len(at))
    loads = observed(at, ones, 2 * ones, types, Seconds(60.0), 10)
    assert len(loads) == 10
    assert sum(load.mean[:, 0].sum() for load in loads) * 60 == pytest.approx(len(arrivals))
    assert all((load.peak >= load.mean - 1e-9).all() for load in loads)


def test_misses_are_shares_of_what_came() -> None:
    actual = np.ones((4, *SHAPE))
    assert misses(1.5 * actual, actual) == Misses(0.0, 50.0)
    assert misses(0.5 * actual, actual) == Misses(50.0, 0.0)


def test_too_few_epochs_are_not_judged() -> None:
    assert judge([steady(1.0)] * LEAST_EPOCHS, HOUR, 0.5, Seconds(0.0), 1) is None


def test_epochs_in_which_nothing_came_are_not_judged() -> None:
    quiet = [steady(1.0)] * 10 + [steady(0.0)] * 50
    assert judge(quiet, HOUR, 0.5, Seconds(0.0), 10) is None
    assert judge([*quiet, steady(1.0)], HOUR, 0.5, Seconds(0.0), 10) is not None


def test_a_week_with_a_surprise_is_forecast_better_than_by_the_plain_ones() -> None:
    weeks = synthetic_weeks(np.random.default_rng(11), 3, 0.1)
    ones: Floats = np.ones(len(weeks.arrivals))
    types = np.where(weeks.tokens_out >= 350, 8, 0)
    loads = observed(weeks.arrivals, ones, weeks.tokens_out.astype(float), types, Seconds(1800.0), 10)
    report = judge(loads, Seconds(1800.0), None, Seconds(0.0), round(2 * WEEK / 1800))
    assert report is not None
    for plain in report.baselines.values():
        assert report.under_forecast_pct < plain.under_forecast_pct
        assert report.over_provision_pct < plain.over_provision_pct


def test_the_surprise_is_in_the_last_week_and_long() -> None:
    weeks = synthetic_weeks(np.random.default_rng(2), 2, 0.2)
    start = WEEK + 3 * DAY + 36_000.0
    inside = (weeks.arrivals >= start) & (weeks.arrivals < start + 10_800.0)
    before = (weeks.arrivals >= start - WEEK) & (weeks.arrivals < start - WEEK + 10_800.0)
    assert inside.sum() > 1.5 * before.sum()
    assert np.median(weeks.tokens_out[inside]) > 1.5 * np.median(weeks.tokens_out[before])


def test_the_command_prints_json(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    rng = np.random.default_rng(3)
    trace = tmp_path / "trace.csv"
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp_s", "input_tokens", "output_tokens"])
        for at in np.cumsum(rng.exponential(0.5, 3000)):
            writer.writerow([f"{at:.3f}", rng.integers(1, 3000), rng.integers(1, 800)])
    assert run(["evaluate", "load", "--trace", str(trace), "--epoch", "60", "--json"], COMMANDS) == 0
    figures = json.loads(capsysbinary.readouterr().out)
    assert 0 <= figures["under_forecast_pct"] < 100
    assert 0 <= figures["over_provision_pct"] < 100
    assert set(figures["by_type"]) <= {a + b for a in "SML" for b in "SML"}
    assert set(figures["by_epoch"]["60"]["baselines"]) == {"constant", "last_value", "seasonal_naive"}


def test_a_trace_that_is_no_trace_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0.0,5,x\n")
    assert run(["evaluate", "load", "--trace", str(trace)], COMMANDS) == 2
    assert "trace.csv:2" in capsys.readouterr().err


def test_a_trace_of_centuries_is_refused_before_it_fills_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,input_tokens,output_tokens\n0,5,5\n9e8,5,5\n")
    assert run(["evaluate", "load", "--trace", str(trace)], COMMANDS) == 2
    assert "too many epochs" in capsys.readouterr().err
