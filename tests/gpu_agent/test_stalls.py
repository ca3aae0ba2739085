"""Who is spared after a stall, and for how long, on a clock the test turns."""

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.stalls import BEAT, LATE, MOMENT, Verdict, stall_end, verdict
from joulegate.units import Seconds

NEVER = Seconds(-inf)
DEADLINE = Seconds(100.0)


def ended(stalls: Sequence[tuple[float, float]]) -> tuple[float | None, float]:
    """What a watchdog does to an agent that says nothing: (clocks first, end).

    It sleeps as `gpu_agent.watchdog` does; a stall (from, seconds) holds up whoever wants to wake in it.
    """
    now, stalled, spared, first = Seconds(95.0), NEVER, None, None
    while True:
        due = min(DEADLINE if spared is None else spared, Seconds(now + BEAT))
        now = due = Seconds(max(now, due))
        for begin, seconds in sorted(stalls):
            if begin <= now < begin + seconds:
                now = Seconds(begin + seconds)
        stalled = stall_end(stalled, due, now)
        found = verdict(DEADLINE, now, stalled, spared)
        if found is Verdict.OVER:
            return first, now
        if found is Verdict.SPARED and spared is None:
            first, spared = now, Seconds(stalled + MOMENT)


def test_who_woke_in_time_spares_nobody() -> None:
    assert ended([]) == (None, DEADLINE)


@pytest.mark.parametrize(
    ("stall", "first", "end"),
    [
        pytest.param((99.9, 2.0), 101.9, 102.9, id="past the deadline"),
        pytest.param((98.5, 1.45), 100.0, 100.95, id="until just before it"),
        pytest.param((96.0, 2.0), None, 100.0, id="long over"),
        pytest.param((99.99, 0.04), None, 100.03, id="too short to be one"),
    ],
)
def test_clocks_are_given_back_at_once_and_an_agent_held_up_too_has_a_moment(
    stall: tuple[float, float], first: float | None, end: float
) -> None:
    found = ended([stall])
    assert found[0] == pytest.approx(first)
    assert found[1] == pytest.approx(end)


def test_a_second_stall_buys_no_second_moment() -> None:
    first, end = ended([(99.9, 2.0), (102.0, 5.0), (107.2, 3.0)])
    assert first == pytest.approx(101.9)
    assert end == pytest.approx(107.0)


@given(st.lists(st.tuples(st.floats(95.0, 104.0), st.floats(0.0, 3.0)), max_size=6))
def test_clocks_come_back_as_early_as_ever_and_a_silent_agent_is_ended(
    stalls: list[tuple[float, float]],
) -> None:
    """As early as a watchdog could that spares nobody: the first time it runs after the deadline."""
    runs = float(DEADLINE)
    for begin, seconds in sorted(stalls):
        if begin <= runs < begin + seconds:
            runs = begin + seconds
    first, end = ended(stalls)
    assert (end if first is None else first) == pytest.approx(runs)
    still = sum(seconds for _, seconds in stalls)
    assert end <= runs + MOMENT + still


@given(st.floats(-10.0, LATE - 1e-6))
def test_a_wake_up_by_an_event_or_nearly_in_time_is_no_stall(late: float) -> None:
    assert stall_end(NEVER, DEADLINE, Seconds(DEADLINE + late)) == NEVER
