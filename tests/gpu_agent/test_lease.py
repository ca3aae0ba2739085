"""One holder at a time, by token, on the agent's clock."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.lease import Granted, Lease, Refused, ask
from joulegate.units import Seconds

LEASE = Lease("gateway-a", 7, Seconds(100.0))


def request(current: Lease | None, holder: str, token: int | None, now: float) -> Granted | Refused:
    return ask(current, holder, token, Seconds(2.0), Seconds(now), next_token=8)


def test_the_first_to_ask_gets_a_fresh_lease() -> None:
    assert request(None, "gateway-a", None, 50.0) == Granted(Lease("gateway-a", 8, Seconds(52.0)), fresh=True)


def test_the_holder_renews_with_its_token() -> None:
    assert request(LEASE, "gateway-a", 7, 99.0) == Granted(Lease("gateway-a", 7, Seconds(101.0)), fresh=False)


@pytest.mark.parametrize(
    ("holder", "token"),
    [
        pytest.param("gateway-b", None, id="somebody else asks"),
        pytest.param("gateway-a", None, id="a second process of the same name asks"),
        pytest.param("gateway-a", 6, id="a token of an earlier lease"),
        pytest.param("gateway-b", 7, id="the right token of the wrong holder"),
    ],
)
def test_others_are_told_who_holds_it_and_for_how_long(holder: str, token: int | None) -> None:
    answer = request(LEASE, holder, token, 99.5)
    assert isinstance(answer, Refused)
    assert answer.holder == "gateway-a"
    assert answer.retry_in == 0.5


def test_a_lease_that_ran_out_cannot_be_renewed_only_replaced() -> None:
    late = request(LEASE, "gateway-a", 7, 100.0)
    assert isinstance(late, Refused)
    assert late.retry_in == 0.0
    assert request(LEASE, "gateway-b", None, 100.0) == Granted(
        Lease("gateway-b", 8, Seconds(102.0)), fresh=True
    )


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0.0, 3.0)), min_size=1, max_size=50)
)
def test_tokens_only_grow_and_two_holders_never_overlap(steps: list[tuple[str, bool, float]]) -> None:
    now, current, token = 0.0, None, 0
    held: dict[str, int | None] = dict.fromkeys("abc")
    history: list[tuple[float, float, str, int]] = []
    for holder, fresh, wait in steps:
        now += wait
        shown = None if fresh else held[holder]
        answer = ask(current, holder, shown, Seconds(1.0), Seconds(now), token + 1)
        if isinstance(answer, Refused):
            continue
        current = answer.lease
        token = max(token, current.token)
        held[holder] = current.token
        history.append((now, current.expires, holder, current.token))
    for (_, until, holder, older), (start, _, next_holder, newer) in pairwise(history):
        assert newer >= older
        assert (holder, older) == (next_holder, newer) or start >= until
