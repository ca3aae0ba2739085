import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.units import Seconds
from router.errors import RateLimited
from router.rate_limits import KeyLimits, RateLimits


def limits(**of: int) -> RateLimits:
    return RateLimits({"a": KeyLimits(**of)}, Seconds(0.0))


def test_requests_a_minute_hold_over_a_minute() -> None:
    found = limits(rpm=60)
    passed = 0
    for step in range(600):  # ten attempts a second
        try:
            found.take("a", Seconds(step / 10))
            passed += 1
        except RateLimited:
            continue
    assert 60 <= passed <= 60 + 15


def test_retry_after_is_when_it_works_again() -> None:
    found = limits(rpm=60)
    for _ in range(15):
        found.take("a", Seconds(0.0))
    with pytest.raises(RateLimited) as refused:
        found.take("a", Seconds(0.0))
    assert refused.value.retry_after is not None
    found.take("a", Seconds(refused.value.retry_after))


def test_tokens_are_taken_at_the_end_and_leave_a_debt() -> None:
    found = limits(tpm=600)  # ten a second, 150 at once
    found.take("a", Seconds(0.0))
    found.done("a", 350)
    with pytest.raises(RateLimited, match="600 tokens"):
        found.take("a", Seconds(0.0))
    found.take("a", Seconds(21.0))


def test_requests_at_a_time() -> None:
    found = limits(concurrency=2)
    found.take("a", Seconds(0.0))
    found.take("a", Seconds(0.0))
    with pytest.raises(RateLimited):
        found.take("a", Seconds(0.0))
    found.done("a", 0)
    found.take("a", Seconds(0.0))


def test_a_key_without_limits_is_never_refused() -> None:
    found = limits(rpm=1)
    for _ in range(100):
        found.take("b", Seconds(0.0))
        found.done("b", 10**9)


@given(st.lists(st.floats(0.0, 2.0), max_size=200), st.integers(1, 600))
def test_no_pattern_of_arrivals_gets_more_than_rate_and_burst(gaps: list[float], rpm: int) -> None:
    found = limits(rpm=rpm)
    now, passed = 0.0, 0
    for gap in gaps:
        now += gap
        try:
            found.take("a", Seconds(now))
            passed += 1
        except RateLimited:
            pass
    assert passed <= now * rpm / 60 + max(1.0, rpm / 4) + 1


def test_while_the_others_cannot_be_heard_each_keeps_to_its_part() -> None:
    found = limits(rpm=60, concurrency=9)
    found.alone(3, Seconds(0.0))
    for _ in range(3):
        found.take("a", Seconds(0.0))
    with pytest.raises(RateLimited, match="9 requests at a time"):
        found.take("a", Seconds(0.0))
    for _ in range(12):
        found.done("a", 0)
        found.take("a", Seconds(0.0))
    found.done("a", 0)
    with pytest.raises(RateLimited) as refused:
        found.take("a", Seconds(0.0))
    assert refused.value.retry_after == pytest.approx(3.0)


def test_what_a_key_has_used_outlives_a_reload() -> None:
    found = limits(concurrency=1, rpm=60)
    found.take("a", Seconds(0.0))
    found.change({"a": KeyLimits(concurrency=1, rpm=60)}, Seconds(0.0))
    with pytest.raises(RateLimited):
        found.take("a", Seconds(0.0))
    found.change({"a": KeyLimits(concurrency=2)}, Seconds(0.0))
    found.take("a", Seconds(0.0))
    with pytest.raises(RateLimited):
        found.take("a", Seconds(0.0))
