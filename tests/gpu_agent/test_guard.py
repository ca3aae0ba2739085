"""A GPU that does not do as told: told again, then left alone at full clocks."""

import pytest

from gpu_agent.device import Reading
from gpu_agent.guard import TRANSITIONS, Event, Guard, State, judge, step
from joulegate.units import Joules, MegaHertz, Seconds, Watts


def reading(clock: int, *reasons: str) -> Reading:
    return Reading(MegaHertz(clock), Watts(300.0), Joules(1.0), 50.0, reasons, ())


@pytest.mark.parametrize(
    ("ceiling", "seen", "event"),
    [
        pytest.param(1200, reading(1200), Event.OBEYS, id="at its ceiling"),
        pytest.param(1200, reading(1230), Event.OBEYS, id="within tolerance"),
        pytest.param(1200, reading(345, "idle"), Event.OBEYS, id="idle below it"),
        pytest.param(1200, reading(1245), Event.ABOVE, id="the lock did not take"),
        pytest.param(1200, reading(900, "thermal"), Event.THROTTLES, id="heat"),
        pytest.param(1200, reading(900, "power_cap"), Event.THROTTLES, id="power"),
        pytest.param(1200, reading(1980, "thermal"), Event.ABOVE, id="above comes first"),
        pytest.param(None, reading(1980), Event.OBEYS, id="no ceiling, nothing to exceed"),
    ],
)
def test_judge(ceiling: int | None, seen: Reading, event: Event) -> None:
    assert judge(None if ceiling is None else MegaHertz(ceiling), seen, MegaHertz(30)) is event


def walk(*events: Event) -> Guard:
    guard = Guard()
    for i, event in enumerate(events):
        guard = step(guard, event, Seconds(float(i)), event.value)
    return guard


@pytest.mark.parametrize(
    ("events", "state"),
    [
        pytest.param([Event.OBEYS], State.NORMAL, id="obeys"),
        pytest.param([Event.ABOVE], State.HOLD, id="above once: told again"),
        pytest.param([Event.ABOVE, Event.OBEYS], State.NORMAL, id="and then it obeyed"),
        pytest.param([Event.ABOVE, Event.ABOVE], State.SAFE, id="above twice: fail up"),
        pytest.param([Event.THROTTLES, Event.THROTTLES], State.HOLD, id="throttling only holds"),
        pytest.param([Event.THROTTLES, Event.OBEYS], State.NORMAL, id="until it is over"),
        pytest.param([Event.FAILED, Event.OBEYS], State.SAFE, id="safe lasts"),
        pytest.param([Event.FAILED, Event.RESTED], State.NORMAL, id="until it has rested"),
        pytest.param(
            [Event.RELEASED, Event.ABOVE, Event.FAILED, Event.RESTED], State.RELEASED, id="hands off"
        ),
        pytest.param([Event.RELEASED, Event.RESUMED], State.NORMAL, id="resumed"),
    ],
)
def test_walks(events: list[Event], state: State) -> None:
    assert walk(*events).state is state


def test_only_normal_lowers_and_every_state_can_be_released() -> None:
    assert [state for state in State if Guard(state).may_lower] == [State.NORMAL]
    for state in set(State) - {State.RELEASED}:
        assert TRANSITIONS[state, Event.RELEASED] is State.RELEASED


def test_a_state_remembers_when_and_why_it_began() -> None:
    guard = step(Guard(), Event.ABOVE, Seconds(5.0), "1980 under 1200")
    assert (guard.since, guard.why) == (5.0, "1980 under 1200")
    assert step(guard, Event.THROTTLES, Seconds(9.0), "heat") == guard
