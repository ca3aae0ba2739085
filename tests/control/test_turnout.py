"""Which instances run, which may move, and for how long more than enough run."""

from hypothesis import given
from hypothesis import strategies as st

from control.lifecycle import MOVING, Phase
from control.turnout import UP, Calm, Candidate, movers, turnout
from joulegate.units import Seconds

SERVING, STOPPED, DRAINING = Phase.SERVING, Phase.STOPPED, Phase.DRAINING
STARTING, FAILED = Phase.STARTING, Phase.FAILED
fleets = st.lists(
    st.tuples(st.sampled_from(Phase), st.booleans(), st.booleans()), min_size=1, max_size=8
).map(lambda rows: [Candidate(f"i{n}", *row) for n, row in enumerate(rows)])


def pool(*phases: Phase) -> list[Candidate]:
    return [Candidate(f"i{n}", phase) for n, phase in enumerate(phases)]


def test_the_last_listed_stops_first_and_the_first_stopped_starts_first() -> None:
    assert turnout(pool(SERVING, SERVING, SERVING), 2) == {"i0", "i1"}
    assert turnout(pool(SERVING, STOPPED, STOPPED), 2) == {"i0", "i1"}
    assert turnout(pool(STOPPED, SERVING, STOPPED), 1) == {"i1"}


def test_one_that_drains_is_had_back_before_one_is_started() -> None:
    assert turnout(pool(SERVING, STOPPED, DRAINING), 2) == {"i0", "i2"}


def test_what_cannot_serve_is_replaced_and_left_alone() -> None:
    down = [Candidate("i0", SERVING, healthy=False), *pool(STOPPED, STOPPED, FAILED)[1:]]
    assert turnout(down, 1) == {"i0", "i1"}
    assert "i2" not in turnout(pool(STOPPED, STOPPED, FAILED), 3)


def test_what_nobody_can_stop_counts() -> None:
    fixed = [Candidate("i0", SERVING, scalable=False), Candidate("i1", SERVING)]
    assert turnout(fixed, 1) == {"i0"}
    assert turnout(fixed, 0) == {"i0"}


def test_all_that_should_run_start_together_and_one_stops_at_a_time() -> None:
    assert movers(pool(SERVING, STOPPED, STOPPED), frozenset({"i0", "i1", "i2"}), 1) == {"i1", "i2"}
    assert movers(pool(STARTING, STOPPED), frozenset({"i0", "i1"}), 1) == {"i1"}
    assert movers(pool(SERVING, SERVING, SERVING), frozenset({"i0"}), 1) == {"i2"}
    assert movers(pool(SERVING, SERVING, SERVING), frozenset({"i0"}), 2) == {"i1", "i2"}
    assert movers(pool(SERVING, SERVING, DRAINING), frozenset({"i0"}), 1) == frozenset()


def test_nothing_stops_before_what_should_run_does() -> None:
    assert movers(pool(SERVING, STARTING), frozenset({"i1"}), 2) == frozenset()


@given(fleets, st.integers(0, 9))
def test_enough_run_if_there_are_enough_and_no_more(fleet: list[Candidate], count: int) -> None:
    wanted = turnout(fleet, count)
    lame = {c.name for c in fleet if c.phase in UP and not c.healthy}
    fixed = {c.name for c in fleet if not c.scalable}
    able = [c for c in fleet if c.phase is not FAILED or not c.scalable]
    assert wanted >= fixed | lame
    assert len(wanted - lame) <= max(count, len(fixed - lame))
    if count <= len([c for c in able if c.name not in lame]):
        assert len(wanted - lame) >= count


@given(fleets, st.integers(0, 9), st.integers(1, 3))
def test_no_more_stop_than_may_and_what_should_run_never_waits(
    fleet: list[Candidate], count: int, at_once: int
) -> None:
    wanted = turnout(fleet, count)
    may = movers(fleet, wanted, at_once)
    moving = sum(c.phase in MOVING for c in fleet)
    assert may - wanted == frozenset() or len(may - wanted) + moving <= at_once
    assert may & wanted == {c.name for c in fleet if c.phase is STOPPED} & wanted


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.0, 30.0)), min_size=1, max_size=60))
def test_as_many_as_were_asked_for_within_the_window(asked: list[tuple[int, float]]) -> None:
    calm, now, seen = Calm(Seconds(60.0)), 0.0, []
    for count, passed in asked:
        now += passed
        seen.append((now, count))
        expected = max(n for at, n in seen if now - at <= 60.0)
        assert calm.settle(count, Seconds(now)) == expected
