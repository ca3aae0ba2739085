"""The life of an instance: what the table lets happen, whatever comes."""

from hypothesis import given
from hypothesis import strategies as st

from control.lifecycle import (
    FENCED,
    HEARD,
    TABLE,
    Act,
    Facts,
    Life,
    Patience,
    Phase,
    Seen,
    step,
)
from joulegate.units import Seconds

PATIENCE = Patience(drain=Seconds(60.0), tries=3, back_off=Seconds(10.0), given_up=Seconds(600.0))
NOW = Seconds(1000.0)
facts = st.builds(
    Facts,
    wanted=st.booleans(),
    seen=st.sampled_from(Seen),
    may_move=st.booleans(),
    empty=st.booleans(),
    done=st.none() | st.booleans(),
    problem=st.sampled_from(["", "no answer"]),
)


def walked(*steps: Facts, start: Life | None = None, every: float = 1.0) -> tuple[Life, list[Act]]:
    """Where these facts lead, one step each, and what was asked for on the way."""
    life, acts, now = start or Life(Phase.SERVING, NOW), [], NOW
    for each in steps:
        now = Seconds(now + every)
        life, act = step(life, each, PATIENCE, now)
        acts += [] if act is None else [act]
    return life, acts


def up(**changes: object) -> Facts:
    return Facts(**{"wanted": True, "seen": Seen.RUNNING, **changes})  # type: ignore[arg-type]


def down(**changes: object) -> Facts:
    return Facts(**{"wanted": False, "seen": Seen.RUNNING, **changes})  # type: ignore[arg-type]


def test_the_table_answers_what_is_heard_and_nothing_else() -> None:
    assert set(TABLE) == {(phase, event) for phase, events in HEARD.items() for event in events}
    assert set(HEARD) == set(Phase)


def test_it_is_fenced_drained_stopped_and_seen_to_have_stopped() -> None:
    life, acts = walked(down(), down(), down(empty=True), down(done=True))
    assert (life.phase, acts) == (Phase.STOPPED, [Act.STOP])
    assert walked(down())[0].fenced


def test_it_is_started_seen_to_run_asked_and_only_then_used() -> None:
    asleep = Life(Phase.STOPPED, NOW)
    stopped = up(seen=Seen.STOPPED)
    life, acts = walked(stopped, stopped, up(done=True), up(), start=asleep)
    assert (life.phase, acts) == (Phase.CHECKING, [Act.START, Act.CHECK])
    assert life.fenced
    life, acts = walked(up(done=True), start=life)
    assert (life.phase, acts, life.fenced) == (Phase.SERVING, [], False)


def test_one_that_drains_is_had_back_at_once() -> None:
    life, acts = walked(down(), up(may_move=False))
    assert (life.phase, acts) == (Phase.SERVING, [])


def test_one_that_does_not_empty_stays_and_is_left_alone_for_a_while() -> None:
    life, acts = walked(down(), *[down()] * 61)
    assert (life.phase, life.failures, acts) == (Phase.SERVING, 1, [])
    assert walked(down(), start=life)[0].phase is Phase.SERVING
    assert walked(down(), start=life, every=80.0)[0].phase is Phase.DRAINING


def test_one_that_would_not_stop_is_asked_and_serves_and_that_is_remembered() -> None:
    life, acts = walked(down(), down(empty=True), down(done=False, problem="500"), down(done=True))
    assert (life.phase, acts) == (Phase.SERVING, [Act.STOP, Act.CHECK])
    assert (life.failures, life.problem) == (1, "500")


def test_each_failed_start_waits_longer_and_the_last_is_given_up() -> None:
    life, waits = Life(Phase.STOPPED, NOW), []
    now = NOW
    for _ in range(3):
        now = Seconds(max(now, life.not_before))
        life, act = step(life, up(seen=Seen.STOPPED), PATIENCE, now)
        assert act is Act.START
        life, _ = step(life, up(seen=Seen.UNKNOWN, done=False, problem="no answer"), PATIENCE, now)
        waits.append(life.not_before - now)
    assert waits == [10.0, 20.0, 600.0]
    life, _ = step(life, up(seen=Seen.STOPPED), PATIENCE, now)
    assert (life.phase, life.problem) == (Phase.FAILED, "no answer")
    assert life.fenced
    again, _ = step(life, up(seen=Seen.STOPPED), PATIENCE, Seconds(now + 601.0))
    assert (again.phase, again.failures) == (Phase.STOPPED, 0)


def test_one_given_up_that_runs_after_all_is_asked_at_once() -> None:
    failed = Life(Phase.FAILED, NOW, 3, Seconds(NOW + 600.0), Act.START, "no answer")
    life, acts = walked(up(), start=failed)
    assert (life.phase, acts) == (Phase.CHECKING, [Act.CHECK])


def test_one_that_answers_nonsense_is_not_asked_again_and_again() -> None:
    failed = Life(Phase.FAILED, NOW, 3, Seconds(NOW + 600.0), Act.CHECK, "nonsense")
    assert walked(*[up()] * 50, start=failed) == (failed, [])


def test_a_new_gateway_begins_with_what_it_sees() -> None:
    new = Life()
    assert walked(up(seen=Seen.UNKNOWN), start=new)[0].phase is Phase.UNSEEN
    assert not new.fenced
    assert walked(up(), start=new)[0].phase is Phase.SERVING
    assert walked(down(seen=Seen.STOPPED), start=new)[0].phase is Phase.STOPPED


def test_one_that_others_woke_is_asked_before_it_is_used() -> None:
    life, acts = walked(down(), start=Life(Phase.STOPPED, NOW))
    assert (life.phase, acts) == (Phase.CHECKING, [Act.CHECK])


@given(st.lists(st.tuples(facts, st.floats(0.0, 400.0)), max_size=60))
def test_whatever_comes_it_is_stopped_only_empty_and_used_only_asked(
    steps: list[tuple[Facts, float]],
) -> None:
    life, now = Life(), NOW
    for each, passed in steps:
        now = Seconds(now + passed)
        before = life
        life, act = step(before, each, PATIENCE, now)
        if act is Act.STOP:
            assert before.phase is Phase.DRAINING
            assert each.empty
        if act is Act.START:
            assert each.wanted
        if before.fenced and not life.fenced:
            assert before.phase is Phase.DRAINING or (before.phase is Phase.CHECKING and each.done)
        if life.phase in FENCED and not before.fenced:
            assert not each.wanted or each.seen is Seen.STOPPED
        assert life.failures <= PATIENCE.tries or life.phase is Phase.SERVING or before.failures > 0


@given(st.lists(facts, max_size=40))
def test_the_same_facts_again_change_nothing_once_it_rests(steps: list[Facts]) -> None:
    life, _ = walked(*steps, start=Life())
    settled = Facts(wanted=life.phase is Phase.SERVING, seen=Seen.UNKNOWN)
    if life.phase in (Phase.SERVING, Phase.STOPPED, Phase.UNSEEN) and life.failures == 0:
        assert walked(*[settled] * 5, start=life) == (life, [])
