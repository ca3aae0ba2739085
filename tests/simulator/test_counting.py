"""When a saving counts, rule by rule and at its edge."""

from dataclasses import replace

import numpy as np
import pytest

from joulegate.domain import Cuts, Objectives, Size
from joulegate.units import Seconds
from simulator.histogram import Histogram
from simulator.jobs import Job
from simulator.results import Pooled, Run, bucket_bounds, joules_per_token, saving_ci, saving_pct, why_not
from simulator.score import Ended, Score, ended

D = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
T = Objectives((Seconds(3600.0),) * 3, Seconds(0.2), Seconds(20.0), None)
COUNT = 1000
TOKENS = {Size.S: 100, Size.M: 500, Size.L: 3000}  # of a prompt


def requests(late: int = 0, size: Size = Size.S, output: int = 200, **values: float) -> Ended:
    """So many, all in time but the first `late`: those have `values` and `output` tokens."""
    usual = {"ttft": 0.1, "tpot": 0.05, "e2e": 10.0}
    columns = [np.full(COUNT, value, dtype=np.float64) for value in usual.values()]
    for column, name in zip(columns, usual, strict=True):
        column[:late] = values.get(name, usual[name])
    lengths = np.full(COUNT, 200)
    lengths[:late] = output
    order, at = np.arange(COUNT), np.arange(COUNT, dtype=np.float64)
    return Ended(order, at, np.full(COUNT, TOKENS[size]), lengths, *columns)


def run(each: Ended, aims: Objectives = D, gap: float = 0.03, joules: float = 1000.0) -> Run:
    score, gaps = Score(aims, Cuts()), Histogram(bucket_bounds())
    score.add(each)
    gaps.observe(gap, 1000)
    nothing = np.zeros(0)
    return Run(score, gaps, joules, 2.0 * joules, 100.0, 1.0, 0, {1980: 100.0}, 10.0, nothing, nothing)


def reasons(policy: Run, baseline: Run) -> list[str]:
    return why_not(Pooled((policy,)), Pooled((baseline,)))


ON_TIME = run(requests())


@pytest.mark.parametrize(
    ("late", "output", "values", "found"),
    [
        pytest.param(0, 200, {}, [], id="as the baseline"),
        pytest.param(5, 200, {"ttft": 0.3}, [], id="half a point of requests"),
        pytest.param(6, 200, {"ttft": 0.3}, ["attainment", "attainment by tokens"], id="more"),
        pytest.param(6, 20, {"ttft": 0.3}, ["attainment"], id="of short answers"),
        pytest.param(5, 2000, {"ttft": 0.3}, ["attainment by tokens"], id="half, of long answers"),
        pytest.param(6, 200, {"tpot": 0.11}, ["attainment", "attainment by tokens"], id="by TPOT"),
        pytest.param(
            6, 200, {"ttft": np.inf, "tpot": np.inf}, ["attainment", "attainment by tokens"], id="lost"
        ),
    ],
)
def test_at_most_half_a_point_of_attainment_may_be_lost(
    late: int, output: int, values: dict[str, float], found: list[str]
) -> None:
    each = requests(late, Size.S, output, **values)
    assert [reason.partition(" 9")[0] for reason in reasons(run(each), ON_TIME)] == found


@pytest.mark.parametrize("size", Size)
def test_the_p99_of_first_tokens_of_each_size_is_held_to_its_objective_or_to_the_baselines(
    size: Size,
) -> None:
    aim = D.ttft[size]
    baseline = run(requests(20, size, ttft=1.1 * aim))
    worse, too_bad = (run(requests(20, size, ttft=times * 1.1 * aim)) for times in (1.19, 1.21))
    assert reasons(worse, baseline) == []
    assert [reason[:13] for reason in reasons(too_bad, baseline)] == [f"P99 TTFT of {size.name}"]
    few = run(requests(9, size, ttft=1.1 * aim))
    assert not any("P99" in reason for reason in reasons(few, ON_TIME)), "nine of a thousand are no P99"


def test_the_size_of_a_prompt_is_that_of_its_true_tokens() -> None:
    each = replace(requests(), input=np.repeat([255, 256, 1023, 1024], COUNT // 4))
    counts = [run(each).score.ttft[size].count for size in Size]
    assert counts == [COUNT // 4, COUNT // 2, COUNT // 4]


def test_the_p99_of_tpot_is_held_to_its_objective_or_to_the_baselines_and_for_t_to_its_objective_alone() -> (
    None
):
    baseline, worse, too_bad = (run(requests(20, tpot=value)) for value in (0.11, 0.13, 0.134))
    assert reasons(worse, baseline) == []
    assert [reason[:8] for reason in reasons(too_bad, baseline)] == ["P99 TPOT"]
    slow = run(requests(20, tpot=0.21), T)
    assert [reason[:8] for reason in reasons(slow, slow)] == ["P99 TPOT"]


def test_for_t_the_p99_of_e2e_is_held_to_its_objective_and_first_tokens_to_none() -> None:
    slow = run(requests(20, e2e=20.5), T)
    assert [reason[:7] for reason in reasons(slow, slow)] == ["P99 E2E"]
    assert reasons(run(requests(20, ttft=9.0), T), run(requests(), T)) == []


@pytest.mark.parametrize(("gap", "counts"), [(0.19, True), (0.205, False)])
def test_gaps_between_tokens_are_held_to_twice_the_objective_of_tpot(gap: float, counts: bool) -> None:
    assert (reasons(run(requests(), gap=gap), ON_TIME) == []) == counts


@pytest.mark.parametrize(("gap", "counts"), [(0.44, True), (0.46, False)])
def test_or_to_half_as_much_again_as_the_baselines(gap: float, counts: bool) -> None:
    assert (reasons(run(requests(), gap=gap), run(requests(), gap=0.3)) == []) == counts


def test_seeds_are_pooled_before_anything_is_counted() -> None:
    good, bad = run(requests()), run(requests(8, ttft=0.3))
    assert reasons(bad, ON_TIME)
    assert why_not(Pooled((good, bad)), Pooled((ON_TIME, ON_TIME))) == []


def test_who_is_not_served_missed_everything_and_energy_is_per_token_served() -> None:
    served = Job(0, 100, 11, 0.0, first_token_at=0.2, finished_at=1.2)
    part = ended([served, Job(1, 100, 11, 0.0, first_token_at=0.2), Job(2, 100, 11, 0.0)])
    assert part.ttft.tolist() == [0.2, np.inf, np.inf]
    assert part.tpot.tolist() == pytest.approx([0.1, np.inf, np.inf])
    half = Pooled((run(requests(COUNT // 2, ttft=np.inf, tpot=np.inf, e2e=np.inf)),))
    assert half.tokens == COUNT // 2 * 200
    assert saving_pct(half, Pooled((ON_TIME,))) == pytest.approx(-100.0)
    assert joules_per_token(half, owned=True) == pytest.approx(2.0 * joules_per_token(half))


def test_the_interval_is_that_of_differences_between_runs_of_the_same_seed() -> None:
    runs = [run(requests(), joules=joules) for joules in (1000.0, 3000.0, 2000.0)]
    alike = [run(requests(), joules=0.7 * one.joules_released) for one in runs]
    assert saving_ci(Pooled(tuple(alike)), Pooled(tuple(runs))) == pytest.approx((30.0, 30.0))
    unlike = [
        run(requests(), joules=share * one.joules_released)
        for share, one in zip((0.6, 0.7, 0.8), runs, strict=True)
    ]
    reach = 4.303 * 10.0 / 3**0.5
    assert saving_ci(Pooled(tuple(unlike)), Pooled(tuple(runs))) == pytest.approx(
        (30.0 - reach, 30.0 + reach)
    )
    assert saving_ci(Pooled((runs[0],)), Pooled((runs[0],))) is None
