"""Who has far more of a pool than the others, and what is left free for them."""

from control.state import LoadBook
from control.tenants import MAX_TENANTS, MEMORY, Tenants
from joulegate.units import Seconds
from tests.control.test_admission import flight

NOW = Seconds(10.0)


def shared(**running: int) -> Tenants:
    tenants = Tenants()
    for name, count in running.items():
        tenants.arrived(name, NOW)
        for _ in range(count):
            tenants.sent(name)
    return tenants


def test_alone_nobody_is_heavy() -> None:
    assert not shared(a=100).heavy("a")


def test_much_more_than_the_mean_of_the_others_is_heavy_until_it_is_not_more() -> None:
    tenants = shared(a=2, b=2, c=6)
    assert [name for name in "abc" if tenants.heavy(name)] == ["c"]
    for _ in range(3):
        tenants.closed("c")
    assert tenants.heavy("c")
    tenants.closed("c")
    assert not tenants.heavy("c")


def test_as_much_as_the_others_needed_lately_stays_free_but_never_more_than_half() -> None:
    tenants = shared(light=3, heavy=12)
    assert tenants.heavy("heavy")
    assert tenants.reserve(100, NOW) == 1
    tenants.closed("light")
    assert tenants.reserve(100, NOW) == 2
    assert tenants.reserve(2, NOW) == 1
    assert tenants.reserve(100, Seconds(NOW + 100 * MEMORY)) == 1


def test_who_was_not_seen_for_long_does_not_count() -> None:
    tenants = shared(a=9, b=0)
    assert tenants.heavy("a")
    tenants.arrived("a", Seconds(NOW + 2 * MEMORY))
    assert not tenants.heavy("a")


def test_tenants_without_end_take_no_memory_without_end() -> None:
    tenants = Tenants()
    for n in range(3 * MAX_TENANTS):
        tenants.arrived(str(n), NOW)
    for n in range(16):
        tenants.sent(str(n))
    assert tenants.heavy("0") is False
    assert tenants.running("0") == 1


def test_an_instance_that_changes_its_pool_takes_its_requests_along() -> None:
    book, before, after = LoadBook(), Tenants(), Tenants()
    book.join(before)
    one = flight(1, tenant="a")
    book.send(one, NOW)
    book.join(after)
    assert (before.total, after.running("a")) == (0, 1)
    book.close(one)
    assert (after.total, after.running("a")) == (0, 0)
