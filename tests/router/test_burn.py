from hypothesis import given
from hypothesis import strategies as st

from joulegate.units import Seconds
from router.burn import Burn, BurnRules

RULES = BurnRules(window=100, misses=0.05, rest=Seconds(300.0))
NOW = Seconds(10.0)


def test_more_misses_at_lower_clocks_than_allowed_end_control_for_a_while() -> None:
    burn = Burn(RULES)
    fell = [burn.add(met=i % 10 != 0, governed=True, now=NOW) for i in range(100)]
    assert fell == [False] * 99 + [True]
    assert burn.rests(NOW)
    assert not burn.rests(Seconds(NOW + 301.0))


def test_misses_at_maximum_clock_are_not_blamed_on_control() -> None:
    burn = Burn(RULES)
    assert not any(burn.add(met=False, governed=False, now=NOW) for _ in range(1000))


def test_a_few_bad_requests_of_a_quiet_pool_are_not_enough() -> None:
    burn = Burn(RULES)
    assert not any(burn.add(met=False, governed=True, now=NOW) for _ in range(99))


def test_after_the_rest_it_starts_anew() -> None:
    burn = Burn(RULES)
    for _ in range(100):
        burn.add(met=False, governed=True, now=NOW)
    later = Seconds(NOW + 301.0)
    assert not any(burn.add(met=True, governed=True, now=later) for _ in range(200))


@given(st.lists(st.booleans(), max_size=600))
def test_it_falls_back_exactly_when_a_window_has_too_many(met: list[bool]) -> None:
    burn, recent = Burn(RULES), list[bool]()
    for ok in met:
        recent.append(not ok)
        expected = len(recent) >= 100 and sum(recent[-100:]) > 5
        assert burn.add(met=ok, governed=True, now=NOW) == expected
        if expected:
            return
