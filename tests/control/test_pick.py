"""Who is near a limit is asked last, and then as if nobody were."""

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.pick import Rng, pauses, pick
from control.state import Flight, Instance, Limits, LoadBook, Room
from joulegate.domain import RequestType, Size
from joulegate.units import Seconds

ROOM = Room(decoding=16, prompt_tokens=4000.0, at=Seconds(0.0))


def flight(name: str = "new", session: str = "") -> Flight:
    kind = RequestType(Size.S, Size.S)
    made = Flight(name, kind, 100, 100, 50.0, 90.0, Seconds(0.0), Seconds(0.25), Seconds(0.1))
    made.session = session
    return made


def instance(name: str, running: int = 0, limited: bool = False) -> Instance:
    book = LoadBook()
    for n in range(running):
        book.send(flight(f"{name}.{n}"), Seconds(0.0))
    made = Instance(name, "p", book, Limits(), None, slots=8, limited=limited)
    made.at_clock = made.at_max = ROOM
    return made


def drawing(*numbers: int) -> Rng:
    """An rng that gives these."""
    left = iter(numbers)
    return lambda n: next(left) % n


def picked(candidates: Sequence[Instance], session: str = "") -> set[str]:
    """Whom any two draws lead to."""
    found = set()
    for first in range(len(candidates)):
        for second in range(len(candidates)):
            choice = pick(flight(session=session), candidates, drawing(first, second, first, second))
            assert choice is not None
            found.add(choice.instance.name)
    return found


def test_a_limited_instance_gets_nothing_while_another_has_a_slot() -> None:
    full = instance("fuller", running=7, limited=True)
    assert picked([instance("free"), full, instance("free too", running=1)]) == {"free", "free too"}


@pytest.mark.parametrize("running", [0, 3])
def test_it_does_when_the_others_are_full(running: int) -> None:
    assert picked([instance("full", running=8), instance("hot", running, limited=True)]) == {"hot"}


def test_where_all_are_limited_sessions_stay_and_the_fullest_goes_first() -> None:
    all_limited = [instance("a", 1, limited=True), instance("b", 5, limited=True)]
    all_limited[0].sessions = {"talk": 500}
    assert picked(all_limited, session="talk") == {"a"}
    choice = pick(flight(), all_limited, lambda n: n - 1)
    assert choice is not None
    assert (choice.instance.name, choice.reason) == ("b", "no rise")


def sized(name: str, prompt: int, answer: float, at: float = 0.0) -> Flight:
    kind = RequestType(Size.L, Size.L)
    return Flight(name, kind, prompt, prompt, answer, answer, Seconds(at), Seconds(2.0), Seconds(0.1))


def apart(one: Flight, candidates: Sequence[Instance]) -> str:
    choice = pick(one, candidates, drawing(), apart=True)
    assert choice is not None
    return choice.instance.name


def test_kept_apart_prompts_that_fill_iterations_go_where_they_stop_fewest() -> None:
    engines = [instance("busy", 5), instance("idle"), instance("one", 1)]
    assert apart(sized("long prompt", 3000, 20.0), engines) == "idle"
    assert apart(sized("short prompt", 300, 20.0), engines) == "busy", "nobody is stopped: the fullest"


def test_kept_apart_long_answers_stay_away_from_where_long_prompts_go() -> None:
    engines = [instance("reads", 4), instance("decodes", 3)]
    assert apart(sized("chat", 300, 400.0), engines) == "reads", "nothing is known yet: the fullest"
    engines[0].send(sized("code", 3000, 20.0), Seconds(0.0))
    assert apart(sized("chat", 300, 400.0), engines) == "decodes"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=6), st.booleans())
def test_kept_apart_it_still_goes_where_no_clock_need_rise(loads: list[tuple[int, int]], long: bool) -> None:
    engines = [instance(f"i{n}", running) for n, (running, _) in enumerate(loads)]
    for engine, (_, prompts) in zip(engines, loads, strict=True):
        engine.at_clock = Room(4, 4000.0, Seconds(0.0))
        engine.filled.add(prompts, Seconds(0.0))
    new = sized("new", 3000 if long else 300, 100.0)
    calm = [engine for engine in engines if engine.book.running < 4]
    if calm:
        choice = pick(new, engines, drawing(), apart=True)
        assert choice is not None
        assert choice.reason == "no rise"
        assert pauses(new, choice.instance) == min(pauses(new, engine) for engine in calm)


def test_kept_apart_long_answers_and_long_prompts_part_by_themselves() -> None:
    engines = [instance(f"i{n}") for n in range(4)]
    for engine in engines:
        engine.slots, engine.at_clock = 100, Room(100, 8000.0, Seconds(0.0))
    talks, met = deque[tuple[Instance, Flight]](), 0
    for n in range(1200):
        now = 0.1 * n
        if n % 3 == 0:  # an answer of 9 s; of the last 30
            chat = sized(f"chat {n}", 300, 300.0, now)
            where = engines[int(apart(chat, engines)[1:])]
            where.send(chat, Seconds(now))
            where.book.progress(chat, 1.0, Seconds(now))
            talks.append((where, chat))
            if len(talks) > 30:
                where, chat = talks.popleft()
                where.book.close(chat)
        else:
            where = engines[int(apart(sized("code", 3000, 20.0, now), engines)[1:])]
            code = sized(f"code {n}", 3000, 20.0, now)
            where.send(code, Seconds(now))
            met += len(where.book.flights) - 1 if n >= 600 else 0
            where.book.progress(code, 20.0, Seconds(now))
            where.book.close(code)
    assert met == 0, "spread evenly, each of 400 prompts would have stopped seven"
