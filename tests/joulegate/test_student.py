import pytest
from scipy.stats import t

from joulegate.student import student


@pytest.mark.parametrize("freedom", [*range(1, 30), 100, 10_000, 7.5, 14.2])
def test_it_is_students_t(freedom: float) -> None:
    assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1.5e-3)


def test_between_few_degrees_it_is_rather_too_large() -> None:
    assert student(2.9) > t.ppf(0.975, 2.9)
