"""Who asks for far more of a pool than the others, and what is left free for them."""

import random

from hypothesis import given
from hypothesis import strategies as st

from control.state import LoadBook
from control.tenants import MAX_TENANTS, MEMORY, Tenants
from joulegate.units import Seconds
from tests.control.test_admission import flight

NOW = Seconds(10.0)


def shared(seconds: float = 60.0, **running: int) -> Tenants:
    """Tenants that have had so many in flight for so long."""
    tenants = Tenants()
    for name, count in running.items():
        tenants.arrived(name, NOW)
        for _ in range(count):
            tenants.sent(name)
    for n in range(round(seconds * 10)):
        for name in running:
            tenants.arrived(name, Seconds(NOW + 0.1 * (n + 1)))
    return tenants


def test_alone_nobody_is_heavy() -> None:
    assert not shared(a=100).heavy("a")


def test_who_asks_for_much_more_than_the_others_is_heavy_until_that_is_over_on_average() -> None:
    tenants = shared(a=2, b=2, c=6)
    assert [name for name in "abc" if tenants.heavy(name)] == ["c"]
    for _ in range(6):
        tenants.closed("c")
    tenants.arrived("c", Seconds(NOW + 61.0))
    assert tenants.heavy("c")
    for n in range(300):
        tenants.arrived("a", Seconds(NOW + 62.0 + 0.1 * n))
    assert not tenants.heavy("c")


def test_who_begins_to_fill_the_pool_is_seen_at_once() -> None:
    tenants = shared(a=2, b=2)
    for _ in range(4):
        tenants.waits("b")
    assert not tenants.heavy("b")
    changes = tenants.changes
    tenants.arrived("b", Seconds(NOW + 60.01))
    assert tenants.heavy("b")
    assert tenants.changes == changes + 1


def test_who_has_a_few_more_by_chance_is_not_heavy_beside_one_that_asks_for_much_since_a_moment() -> None:
    tenants = shared(light=2, heavy=2)
    for _ in range(10):
        tenants.arrived("heavy", Seconds(NOW + 60.01))
        tenants.waits("heavy")
    for _ in range(5):
        tenants.arrived("light", Seconds(NOW + 60.02))
        tenants.sent("light")
    assert tenants.heavies == {"heavy"}
    tenants.arrived("light", Seconds(NOW + 60.2))
    assert tenants.heavies == {"heavy"}


def test_places_stay_free_for_what_the_others_ask_for_by_chance() -> None:
    tenants = shared(light=2, heavy=50)
    assert tenants.heavy("heavy")
    assert tenants.reserve(100) == 6  # ceil(2 + 3 sqrt(2)) and one, less the two they have
    tenants.closed("light")
    assert tenants.reserve(100) == 7
    assert tenants.reserve(8) == 3, "the heavy one keeps its half"


def test_who_was_not_seen_for_long_does_not_count() -> None:
    tenants = shared(a=9, b=0)
    assert tenants.heavy("a")
    later = Seconds(NOW + 62.0 + MEMORY)
    tenants.arrived("a", later)
    tenants.arrived("a", Seconds(later + 0.2))
    assert not tenants.heavy("a")


def test_tenants_without_end_take_no_memory_without_end() -> None:
    tenants = Tenants()
    for n in range(3 * MAX_TENANTS):
        tenants.arrived(str(n), NOW)
    for _ in range(16):
        tenants.sent("0")
    assert not tenants.heavy("0"), "it was forgotten"
    assert tenants.running("0") == 16


@given(st.integers(0, 2**32))
def test_to_be_asked_changes_nothing(seed: int) -> None:
    """Two histories alike but for the questions in between."""
    rng, asked, silent = random.Random(seed), Tenants(), Tenants()
    now, open_ = float(NOW), list[str]()
    for _ in range(60):
        now += rng.expovariate(5.0)
        tenant = rng.choice("abc")
        for each in (asked, silent):
            each.arrived(tenant, Seconds(now))
            each.sent(tenant)
        open_.append(tenant)
        if rng.random() < 0.5:
            gone = open_.pop(rng.randrange(len(open_)))
            for each in (asked, silent):
                each.closed(gone)
        for name in "abcd":
            asked.heavy(name)
            asked.reserve(rng.randint(0, 20))
    assert asked.heavies == silent.heavies
    assert asked.reserve(16) == silent.reserve(16)


def test_an_instance_that_changes_its_pool_takes_its_requests_along() -> None:
    book, before, after = LoadBook(), Tenants(), Tenants()
    book.join(before)
    one = flight(1, tenant="a")
    book.send(one, NOW)
    book.join(after)
    assert (before.total, after.running("a")) == (0, 1)
    book.close(one)
    assert (after.total, after.running("a")) == (0, 0)
