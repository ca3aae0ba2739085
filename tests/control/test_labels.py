"""Which pool an instance belongs to: labels move where they are needed, and no further."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from control.labels import Labelled, labels, served
from control.state import PoolRules
from joulegate.domain import Objectives, RequestType, Size
from joulegate.units import Seconds

POOLS = ("short", "medium", "long")


def one(name: str, pool: str, home: str = "", up: bool = True, sessions: int = 0) -> Labelled:
    return Labelled(name, "h100", pool, home or pool, up, sessions)


def test_nothing_moves_while_every_pool_has_what_it_asks_for() -> None:
    fleet = [one("a", "short"), one("b", "long"), one("c", "long", up=False)]
    assert labels(fleet, {"short": 1, "long": 1}, {}) == {"a": "short", "b": "long", "c": "long"}


def test_a_merged_pool_gives_all_to_its_host() -> None:
    fleet = [one("a", "short"), one("b", "long"), one("c", "short", up=False)]
    assert labels(fleet, {"long": 1}, {"short": "long"}) == dict.fromkeys("abc", "long")


def test_what_is_over_goes_where_one_is_lacking_and_sessions_stay() -> None:
    fleet = [one("a", "long", sessions=9), one("b", "long", sessions=1), one("c", "short")]
    assert labels(fleet, {"long": 1, "short": 2}, {}) == {"a": "long", "b": "short", "c": "short"}


def test_a_split_sends_them_home() -> None:
    fleet = [one("a", "long", home="short"), one("b", "long"), one("c", "long")]
    assert labels(fleet, {"short": 1, "long": 2}, {}) == {"a": "short", "b": "long", "c": "long"}


def test_those_who_sleep_fill_up_what_is_lacking() -> None:
    fleet = [one("a", "short"), one("b", "long", up=False), one("c", "long", up=False)]
    assert labels(fleet, {"short": 2, "long": 1}, {}) == {"a": "short", "b": "long", "c": "short"}


def test_another_kind_does_not_move_to_where_its_kind_was_never_configured() -> None:
    fleet = [Labelled("a", "a100", "long", "long", up=True), one("b", "long"), one("c", "short")]
    moved = labels(fleet, {"long": 1, "short": 2}, {})
    assert (moved["a"], moved["b"]) in {("long", "short"), ("long", "long")}
    assert moved["a"] == "long"


@given(
    st.lists(
        st.tuples(st.sampled_from(POOLS), st.sampled_from(POOLS), st.booleans(), st.integers(0, 5)),
        min_size=3,
        max_size=9,
    ),
    st.tuples(*[st.integers(0, 4)] * 3),
)
def test_every_pool_gets_what_it_asks_for_where_there_is_enough(
    rows: list[tuple[str, str, bool, int]], counts: tuple[int, int, int]
) -> None:
    homes = [(*row[:1], POOLS[n] if n < 3 else row[1], *row[2:]) for n, row in enumerate(rows)]
    fleet = [one(f"i{n}", *row) for n, row in enumerate(homes)]
    asked = dict(zip(POOLS, counts, strict=True))
    moved = labels(fleet, asked, {})
    got = Counter(moved.values())
    if sum(counts) <= len(fleet):
        assert all(got[pool] >= n for pool, n in asked.items()), (moved, asked)
    moved_again = labels(
        [Labelled(i.name, i.kind, moved[i.name], i.home, i.up, i.sessions) for i in fleet], asked, {}
    )
    assert moved_again == moved, "once there, nothing moves"


def test_a_pool_serves_its_own_types_and_those_of_the_pools_that_are_part_of_it() -> None:
    aims = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
    homes = [PoolRules(size.name, aims, frozenset(RequestType(i, size) for i in Size)) for size in Size]
    rules = {each.name: each for each in served(homes, {"S": "L"})}
    assert rules["S"] == homes[0], "what still waits there goes by its own"
    assert rules["M"] == homes[1]
    assert rules["L"].types == homes[0].types | homes[2].types
    assert [each.types for each in served(homes, {})] == [home.types for home in homes]
