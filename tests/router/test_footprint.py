import pytest

from joulegate.units import Joules
from router.footprint import Footprint, constant, series


def test_a_kilowatt_hour_at_the_boards_is_more_at_the_meter() -> None:
    footprint = Footprint(pue=1.2, intensity=constant(400.0), price_per_kwh=0.25, currency="EUR")
    footprint.add(Joules(3.6e6), unix=0.0)
    assert footprint.grams == pytest.approx(480.0)
    assert footprint.cost == pytest.approx(0.30)
    assert footprint.joules == 3.6e6


def test_a_series_holds_each_value_until_the_next() -> None:
    intensity = series(["unix_s,g_per_kwh", "100,300", "200,50", ""])
    assert [intensity.at(t) for t in (0.0, 100.0, 199.0, 200.0, 1e9)] == [300, 300, 300, 50, 50]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["100,x"], "line 1"),
        (["100,1", "90,1"], "line 2"),
        (["100,-1"], "line 1"),
        ([], "no rows"),
        (["1,2,3"], "line 1"),
    ],
)
def test_a_bad_series_says_where(lines: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        series(lines)


def test_without_figures_nothing_is_claimed() -> None:
    footprint = Footprint()
    footprint.add(Joules(1e9), unix=0.0)
    assert (footprint.grams, footprint.cost) == (0.0, 0.0)
