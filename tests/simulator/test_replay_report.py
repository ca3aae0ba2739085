import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.domain import Cuts, Objectives
from joulegate.units import Seconds
from simulator.histogram import Histogram
from simulator.replay_report import Answer, Tally, attainment, summary

OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
GOOD = Answer(
    input_tokens=100, wanted=11, ttft=0.1, e2e=0.6, tokens=11, prompt_tokens=100, exact=True, id="a"
)


def tally(*answers: Answer, lost: int = 0) -> Tally:
    return Tally(answers=list(answers), sent=len(answers) + lost)


@pytest.mark.parametrize(
    ("change", "met"),
    [
        pytest.param({}, 100.0, id="met"),
        pytest.param({"ttft": 0.251}, 0.0, id="ttft of a short input"),
        pytest.param({"e2e": 1.2}, 0.0, id="tpot"),
        pytest.param({"error": "status 503"}, 0.0, id="an error is a miss"),
        pytest.param({"tokens": 1, "e2e": 5.0}, 100.0, id="one token has no tpot"),
    ],
)
def test_attainment_of_one(change: dict[str, float | str], met: float) -> None:
    answer = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert attainment(tally(answer), OBJECTIVES, Cuts())["S"] == met


def test_each_input_class_has_its_own_objective_and_a_lost_request_is_a_miss() -> None:
    medium = dataclasses.replace(GOOD, input_tokens=256, ttft=0.3)
    long = dataclasses.replace(GOOD, input_tokens=1024, ttft=2.5, e2e=3.0)
    shares = attainment(tally(GOOD, medium, long, lost=1), OBJECTIVES, Cuts())
    assert shares == {"S": 100.0, "M": 100.0, "L": 0.0, "all": 50.0}


def test_lost_doubled_and_inexact_answers_are_counted() -> None:
    other = dataclasses.replace(GOOD, exact=False)
    report = summary(tally(GOOD, other, lost=2), OBJECTIVES, Cuts())
    assert (report["lost"], report["doubled"], report["usage_mismatches"]) == (2, 1, 1)
    assert report["output_tokens"] == 22


def test_nothing_answered_has_no_quantiles() -> None:
    failed = dataclasses.replace(GOOD, error="status 500", ttft=math.nan)
    report = summary(tally(failed), OBJECTIVES, Cuts())
    assert report["ttft_s"] == {"p50": None, "p90": None, "p99": None}
    assert report["error_kinds"] == {"status 500": 1}


@given(st.lists(st.floats(0.0, 20.0), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_within_a_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.1 * k for k in range(1, 101)]
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    true = sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]
    found = histogram.quantile(share)
    assert found <= max(values)
    assert found >= true or found == pytest.approx(true)
    if true <= bounds[-1]:
        assert found <= true + 0.1 + 1e-9


def test_histograms_add_up() -> None:
    one, two = Histogram([1.0, 2.0]), Histogram([1.0, 2.0])
    one.observe(0.5, 3)
    two.observe(9.0)
    one.add(two)
    assert (one.counts, one.total, one.largest) == ([3, 0, 1], 10.5, 9.0)
