"""Instances that change pools under the laws: who is served where, before and after."""

import random

from control.admission import AdmissionRules
from control.governor import GovernorRules
from control.state import Flight, Instance, Limits, LoadBook, PoolRules, Room
from control.steering import Steering
from joulegate.domain import Objectives, RequestType, Size
from joulegate.units import Seconds

AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
SHORT = frozenset({RequestType(Size.S, Size.S)})
LONG = frozenset(RequestType(i, o) for i in Size for o in Size) - SHORT
ROOM = Room(50, 1e6, Seconds(0.0))


class Pools:
    """Short with instance a, long with b and c."""

    def __init__(self) -> None:
        self.rules = {"short": PoolRules("short", AIMS, SHORT), "long": PoolRules("long", AIMS, LONG)}
        self.instances = {
            name: Instance(name, pool, LoadBook(), Limits(), None, slots=100, at_clock=ROOM, at_max=ROOM)
            for name, pool in (("a", "short"), ("b", "long"), ("c", "long"))
        }
        rng = random.Random(3).randrange
        laws = list(self.instances.values())
        self.laws = Steering(list(self.rules.values()), laws, AdmissionRules(), GovernorRules(), rng)
        self.count = 0

    def ask(self, pool: str, session: str = "") -> str:
        """Where one request goes."""
        self.count += 1
        kind = RequestType(Size.S, Size.S)
        one = Flight(
            str(self.count),
            kind,
            100,
            100,
            20.0,
            40.0,
            Seconds(1.0),
            Seconds(1.0),
            Seconds(0.1),
            session=session,
        )
        (grant,) = self.laws.arrive(one, pool, Seconds(1.0)).grants
        grant.instance.book.progress(one, 1.0, Seconds(1.0))
        return grant.instance.name

    def move(self, name: str, pool: str) -> None:
        self.instances[name].pool = pool
        self.laws.relabel(list(self.rules.values()))


def test_a_label_moves_what_it_serves_and_leaves_what_it_has() -> None:
    pools = Pools()
    assert {pools.ask("short") for _ in range(20)} == {"a"}
    pools.move("b", "short")
    assert {pools.ask("short") for _ in range(40)} == {"a", "b"}
    assert {pools.ask("long") for _ in range(10)} == {"c"}
    assert pools.laws.pools["short"].instances == 2
    assert pools.instances["a"].book.running >= 20, "nothing was taken from it"


def test_a_session_stays_where_it_is_cached_when_its_instance_changes_pools() -> None:
    pools = Pools()
    pools.instances["b"].sessions = {"s": 900}
    pools.move("b", "short")
    assert {pools.ask("long", session="s") for _ in range(10)} == {"b"}
    assert {pools.ask("long", session="new") for _ in range(10)} == {"c"}


def test_a_session_leaves_an_instance_that_would_not_keep_its_objectives() -> None:
    pools = Pools()
    pools.instances["b"].sessions = {"s": 900}
    pools.move("b", "short")
    pools.instances["b"].at_clock = pools.instances["b"].at_max = Room(0, 0.0, Seconds(0.0))
    assert pools.ask("long", session="s") == "c"
