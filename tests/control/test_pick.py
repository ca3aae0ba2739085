"""Who is near a limit is asked last, and then as if nobody were."""

from collections.abc import Sequence

import pytest

from control.pick import Rng, pick
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
