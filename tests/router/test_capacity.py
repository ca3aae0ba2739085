import pytest

from control.state import Flight, Gauges, Instance, Limits, LoadBook, Room
from joulegate.domain import RequestType, Size
from joulegate.units import Seconds
from router.capacity import desired_replicas, used_ratio


def instance(running: int, room: int = 0, slots: int = 100, ready: bool = True) -> Instance:
    book = LoadBook()
    for i in range(running):
        kind = RequestType(Size.S, Size.S)
        flight = Flight(str(i), kind, 10, 10, 5.0, 9.0, Seconds(0.0), Seconds(1.0), Seconds(1.0))
        book.send(flight, Seconds(0.0))
    found = Instance("i", "p", book, Limits(), None, ready=ready, slots=slots)
    found.at_max = Room(room, 0.0, Seconds(0.0))
    return found


def test_load_is_held_against_what_maximum_clock_carries_not_against_slots() -> None:
    assert used_ratio([instance(10, room=40)], queued=0) == 0.25
    assert used_ratio([instance(10)], queued=0) == 0.1, "without a model: slots"


def test_what_waits_counts_and_overload_is_above_one() -> None:
    assert used_ratio([instance(40, room=40)], queued=20) == 1.5


@pytest.mark.parametrize(
    ("running", "queued", "desired"), [(0, 0, 1), (32, 0, 2), (33, 0, 3), (40, 40, 5), (1, 0, 1)]
)
def test_desired_replicas_run_the_load_at_four_fifths(running: int, queued: int, desired: int) -> None:
    pool = [instance(running, room=20), instance(0, room=20)]
    assert desired_replicas(pool, queued) == desired


def test_an_instance_that_is_out_carries_nothing() -> None:
    pool = [instance(10, room=20), instance(0, room=20, ready=False)]
    assert used_ratio(pool, queued=0) == 0.5
    assert used_ratio([instance(0, ready=False)], queued=3) == 1.0


def test_what_other_gateways_sent_there_counts() -> None:
    one = instance(2, room=20)
    one.gauges = Gauges(running=10, waiting=0, at=Seconds(0.0))
    assert used_ratio([one], queued=0) == 0.5
