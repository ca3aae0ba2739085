"""Who is taken back from an instance, for what, and that nobody is without need."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.emergency import Rung, relieve
from control.state import Flight, Instance, Limits, LoadBook, Room
from joulegate.domain import RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds
from predictor.physics import PhysicsModel

MODEL = PhysicsModel(parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes())))
TOP = MODEL.clocks[-1]
KIND = RequestType(Size.M, Size.M)
PLENTY = Room(decoding=100, prompt_tokens=1e6, at=Seconds(0.0))


def flight(name: str, arrived: float = 0.0, tokens: int = 500, ttft: float = 0.4, avoid: str = "") -> Flight:
    return Flight(
        name, KIND, tokens, tokens, 100.0, 200.0, Seconds(arrived), Seconds(ttft), Seconds(0.1), avoid=avoid
    )


def instance(name: str, *prompts: Flight, sent: float = 0.0, room: Room = PLENTY) -> Instance:
    made = Instance(name, "p", LoadBook(), Limits(64, 2048, 400_000), MODEL, slots=64, at_max=room)
    for prompt in prompts:
        made.book.send(prompt, Seconds(sent))
    return made


def rungs(*args: object, **options: object) -> list[tuple[str, Rung]]:
    found = relieve(*args, **options)  # type: ignore[arg-type]
    return [(relief.flight.id, relief.rung) for relief in found]


def test_nothing_happens_while_everybody_is_in_time() -> None:
    busy = instance("a", flight("1"), flight("2"))
    assert relieve(busy, [instance("b")], shed=True, now=Seconds(0.02)) == []


def test_a_prompt_behind_a_backlog_goes_where_it_can_be_in_time() -> None:
    long = [flight(str(n), tokens=8000, ttft=9.0) for n in range(4)]
    busy = instance("a", *long, flight("late"))
    assert rungs(busy, [instance("b")], False, Seconds(0.1)) == [("late", Rung.RESTEER)]


def test_a_stuck_instance_keeps_nobody_whom_another_can_take() -> None:
    stuck = instance("a", flight("1"), flight("2", ttft=30.0))
    found = relieve(stuck, [instance("b")], False, Seconds(3.0))
    assert [(r.flight.id, r.rung, r.stuck) for r in found] == [
        ("1", Rung.RESTEER, True),  # late, but there is somebody who answers
        ("2", Rung.RESTEER, True),
    ]
    assert relieve(stuck, [instance("b")], False, Seconds(0.1)) == [], "it may only be slow"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(instance("b", room=Room(0, 0.0, Seconds(0.0))), id="has no room at maximum clock"),
        pytest.param(
            instance("b", *(flight(f"x{n}", tokens=8000, ttft=60.0) for n in range(20))), id="is as late"
        ),
    ],
)
def test_nobody_goes_where_it_would_not_help(other: Instance) -> None:
    long = [flight(str(n), tokens=8000, ttft=9.0) for n in range(4)]
    assert rungs(instance("a", *long, flight("late")), [other], False, Seconds(0.1)) == []


@pytest.mark.parametrize("change", ["suspect", "limited", "not ready", "no model"])
def test_a_doubtful_instance_rescues_nobody(change: str) -> None:
    other = instance("b")
    if change == "not ready":
        other.ready = False
    elif change == "no model":
        other.model = None
    else:
        setattr(other, change, True)
    assert rungs(instance("a", flight("1")), [other], False, Seconds(0.7)) == []


def test_whoever_was_moved_once_stays() -> None:
    stuck = instance("a", flight("1", avoid="b"))
    assert rungs(stuck, [instance("c")], False, Seconds(0.7)) == []


def test_those_moved_together_do_not_overload_where_they_go() -> None:
    other = instance("b", room=Room(decoding=2, prompt_tokens=1e6, at=Seconds(0.0)))
    stuck = instance("a", *(flight(str(n), ttft=5.0) for n in range(5)))
    assert len(rungs(stuck, [other], False, Seconds(2.0))) == 2


@pytest.mark.parametrize(
    ("shed", "behind", "now", "squashed"),
    [
        pytest.param(True, [flight("2", ttft=60.0)], 1.0, True, id="past its deadline, somebody waits"),
        pytest.param(False, [flight("2", ttft=60.0)], 1.0, False, id="the pool does not shed"),
        pytest.param(True, [], 1.0, False, id="nobody waits behind"),
        pytest.param(True, [flight("2", ttft=60.0)], 0.35, False, id="not past its deadline yet"),
    ],
)
def test_who_is_squashed(shed: bool, behind: list[Flight], now: float, squashed: bool) -> None:
    head = flight("head", tokens=60_000, ttft=60.0)
    slow = instance("a", head, flight("1"), *behind)
    assert (("1", Rung.SQUASH) in rungs(slow, [], shed, Seconds(now))) is squashed


def test_the_prompt_that_is_being_read_is_not_squashed() -> None:
    slow = instance("a", flight("1", tokens=60_000), flight("2", ttft=60.0))
    assert rungs(slow, [], True, Seconds(1.0)) == []


def unseen(tokens: float | None, limit: int | None = None, avoid: str = "") -> Instance:
    """One request that does not stream, sent at 0; by the time its first token is taken to have come."""
    one = flight("1", avoid=avoid)
    one.max_tokens = tokens
    silent = instance("a", one)
    silent.limits = Limits(64, 2048, 400_000, limit)
    silent.book.progress(one, 1.0, Seconds(0.1))
    return silent


@pytest.mark.parametrize(
    ("silent", "after", "taken"),
    [
        pytest.param(unseen(10.0), 1.0, False, id="may only be slow"),
        pytest.param(unseen(10.0), 3.0, True, id="ten tokens take no three seconds"),
        pytest.param(unseen(2000.0), 3.0, False, id="two thousand do"),
        pytest.param(unseen(2000.0), 200.0, True, id="but not for ever"),
        pytest.param(unseen(None), 10.0, False, id="nothing bounds it"),
        pytest.param(unseen(None), 1e4, True, id="but what is usual"),
        pytest.param(unseen(None, 2500), 200.0, True, id="the context does"),
        pytest.param(unseen(10.0, avoid="z"), 3.0, False, id="was elsewhere before"),
    ],
)
def test_an_answer_that_comes_all_at_once_is_missed_when_its_longest_would_have_ended(
    silent: Instance, after: float, taken: bool
) -> None:
    found = relieve(silent, [instance("b")], False, Seconds(after), silent.book.flights.values())
    assert [(r.flight.id, r.rung, r.stuck) for r in found] == [("1", Rung.RESTEER, True)] * taken
    assert relieve(silent, [], False, Seconds(after), silent.book.flights.values()) == []


@pytest.mark.parametrize(("idle_at", "taken"), [(0.0, False), (1.6, False), (1.8, True)])
def test_what_an_engine_with_nothing_to_do_does_not_have_is_taken_back(idle_at: float, taken: bool) -> None:
    """Three times as late as its first token was due, and half a second more."""
    silent = unseen(None)
    waiting = silent.book.flights.values()
    found = relieve(silent, [instance("b")], False, Seconds(2.0), waiting, Seconds(idle_at))
    assert [relief.flight.id for relief in found] == ["1"] * taken


def test_without_a_model_nothing_is_taken_back() -> None:
    blind = instance("a", flight("1"))
    blind.model = None
    assert relieve(blind, [instance("b")], True, Seconds(100.0)) == []


prompts = st.lists(
    st.builds(
        flight,
        st.uuids().map(str),
        arrived=st.floats(0.0, 5.0),
        tokens=st.integers(1, 20_000),
        ttft=st.floats(0.1, 10.0),
        avoid=st.sampled_from(["", "", "z"]),
    ),
    max_size=12,
)


@given(prompts, prompts, st.booleans(), st.floats(5.0, 30.0), st.sampled_from([None, *MODEL.clocks[::20]]))
def test_what_always_holds(
    mine: list[Flight], theirs: list[Flight], shed: bool, now: float, clock: MegaHertz | None
) -> None:
    one, other = instance("a", *mine, sent=5.0), instance("b", *theirs, sent=5.0)
    one.clock = clock
    before = [f.id for f in one.book.prompts.values()]
    found = relieve(one, [other], shed, Seconds(now))
    names = [relief.flight.id for relief in found]
    assert len(set(names)) == len(names)
    assert [f.id for f in one.book.prompts.values()] == before, "it says what to do and does nothing"
    assert names == [name for name in before if name in names], "in the engine's order"
    for relief in found:
        assert relief.flight.first_token is None
        if relief.rung is Rung.RESTEER:
            assert not relief.flight.avoid
        else:
            assert shed
            assert now > relief.flight.deadline
    assert relieve(one, [], False, Seconds(now)) == [], "nowhere to go and nobody is refused"
