import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from control.lifecycle import Phase
from control.mapping import Proof, Standing
from control.state import Flight, LoadBook
from joulegate.domain import RequestType, Size
from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.build_fleet import build_fleet
from router.deaths import Deaths
from router.errors import RateLimited
from router.fleet import Health
from router.observe import Condition
from router.plan_share import PlanShare
from router.pools import Member
from router.proofs import Proofs
from router.rate_limits import KeyLimits, KeyUse, RateLimits
from router.replica_load import NO_LOAD, PeerLoad, decode, encode, total
from router.replicas import Replicas
from router.responses import Makers
from router.store import MemoryStore, RedisStore, Store

NO_LIMITS = RateLimits({}, Seconds(0.0))


def flight(name: str, prompt: int = 100, now: float = 0.0) -> Flight:
    kind = RequestType(Size.S, Size.S)
    return Flight(name, kind, prompt, prompt, 50.0, 90.0, Seconds(now), Seconds(0.25), Seconds(0.1))


def book(*flights: Flight) -> LoadBook:
    found = LoadBook()
    for each in flights:
        found.send(each, Seconds(0.0))
    return found


def test_a_load_arrives_as_it_was_sent() -> None:
    sent = {"a": book(flight("1"), flight("2", 300)), "idle": book()}
    phases, asks = {"a": Phase.STOPPED}, frozenset({("m", "p")})
    deaths = {2**57 + 1: frozenset({"a", "b"})}
    told = encode(sent, {"k": KeyUse(1, 2, 3)}, {"a": 7}, phases, asks, deaths, True, Seconds(0.05))
    news = decode(told)
    received = news.loads
    assert (news.phases, news.asks, news.deaths, news.leaving) == (phases, asks, deaths, True)
    assert news.uses == {"k": KeyUse(1, 2, 3)}
    assert list(received) == ["a"]
    load = received["a"]
    assert (load.running, load.prompts, load.prompt_tokens, load.context) == (2, 2, 400, 0.0)
    assert load.due_in == pytest.approx(0.2)


def test_loads_of_replicas_add_up_and_the_tightest_deadline_counts() -> None:
    one, two = {"a": PeerLoad(1, 1, 10, 5.0, 0.3)}, {"a": PeerLoad(2, 0, 0, 7.0), "b": PeerLoad(1)}
    assert total([one, two]) == {"a": PeerLoad(3, 1, 10, 12.0, 0.3), "b": PeerLoad(1)}


@given(st.binary(max_size=200))
def test_garbage_is_refused_not_believed(message: bytes) -> None:
    try:
        decode(message)
    except (ValueError, TypeError):
        return


class Ring:
    """Replicas over one real Redis, ticked by hand or running."""

    def __init__(self, url: str) -> None:
        self.cluster = uuid.uuid4().hex
        self.url = url
        self.clock: Callable[[], float] = time.monotonic
        self.counts: dict[str, int] = {}
        self.made: list[Replicas] = []

    def replica(
        self,
        name: str,
        books: dict[str, LoadBook],
        condition: Condition | None = None,
        limits: RateLimits | None = None,
        members: Sequence[Member] = (),
        makers: Makers | None = None,
        plan: PlanShare | None = None,
        deaths: Deaths | None = None,
    ) -> Replicas:
        found = Replicas(
            RedisStore(self.url, self.cluster, name, timeout=10.0),  # a busy machine is not a lost store
            books,
            limits or RateLimits({}, Seconds(0.0)),
            Proofs(members),
            Makers() if makers is None else makers,
            plan or PlanShare(),
            deaths or Deaths(),
            condition or Condition(),
            lambda: self.clock(),
            lambda count: self.counts.__setitem__(name, count),
        )
        self.made.append(found)
        return found


@pytest_asyncio.fixture
async def ring(redis_url: str) -> AsyncIterator[Ring]:
    found = Ring(redis_url)
    yield found
    for replica in found.made:
        await replica.close()


def instance(gpu: str, proven: bool) -> Member:
    """One of a gateway whose settings name this GPU."""
    served = {"name": "i", "url": "http://h:1", "agent": "n", "gpus": [gpu]}
    models = [{"name": "m", "pools": [{"name": "p", "instances": [served]}]}]
    agents = [{"name": "n", "url": "http://n:1"}]
    fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models, "agents": agents}))
    [(_, _, member)] = fleet.members()
    member.proof = Proof(Standing.PROVEN) if proven else Proof()
    return member


async def test_what_one_has_proven_the_others_need_not(ring: Ring) -> None:
    follower, elsewhere, down = instance("g", False), instance("another", False), instance("g", False)
    down.status.health = Health.DOWN
    leader = ring.replica("leader", {}, members=[instance("g", True)])
    second = ring.replica("second", {}, members=[follower, elsewhere, down])
    for _ in range(2):
        await leader.tick()
        await second.tick()
    assert leader.leads
    assert [member.proven for member in (follower, elsewhere, down)] == [True, False, False]


async def test_who_leads_believes_only_what_it_has_seen(ring: Ring) -> None:
    mine = instance("g", False)
    leader = ring.replica("leader", {}, members=[mine])
    second = ring.replica("second", {}, members=[instance("g", True)])
    for _ in range(2):
        await leader.tick()
        await second.tick()
    assert leader.leads
    assert not mine.proven


async def test_each_sees_the_others_load_and_how_many_share(ring: Ring) -> None:
    one = ring.replica("one", {"a": book(flight("1"))})
    two = ring.replica("two", {"a": book(flight("2"), flight("3"))})
    for _ in range(2):
        await one.tick()
        await two.tick()
    assert (one.load("a").running, two.load("a").running) == (2, 1)
    assert one.load("b") == NO_LOAD
    assert ring.counts == {"one": 2, "two": 2}
    assert [one.leads, two.leads] == [True, False]


def bare(
    store: Store | None = None,
    condition: Condition | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Replicas:
    """One without instances, keys with limits or a Redis of its own."""
    return Replicas(
        store or MemoryStore(),
        {},
        NO_LIMITS,
        Proofs([]),
        Makers(),
        PlanShare(),
        Deaths(),
        condition or Condition(),
        clock,
        lambda _: None,
    )


async def test_what_is_due_at_anothers_comes_nearer_between_two_exchanges() -> None:
    now = 10.0
    replica = bare(clock=lambda: now)
    await replica.tick()
    replica.peers = {"a": PeerLoad(1, 1, 100, 0.0, 0.4)}
    assert replica.load("a").due_in == pytest.approx(0.3), "it may have been sent a period ago"
    now += 0.05
    assert replica.load("a").due_in == pytest.approx(0.25)


async def test_when_the_leader_falls_silent_another_leads(ring: Ring) -> None:
    one, two = ring.replica("one", {}), ring.replica("two", {})
    await one.tick()
    assert one.leads
    task = asyncio.create_task(two.run())
    await _until(lambda: two.leads)
    task.cancel()
    assert ring.counts.get("two", 1) == 1, "and the silent one no longer counts"


async def test_a_step_up_is_told_at_once(ring: Ring) -> None:
    books = {"a": book()}
    one, two = ring.replica("one", books), ring.replica("two", {})
    running = asyncio.create_task(one.run())
    await _until(lambda: one.leads)
    books["a"].send(flight("1"), Seconds(0.0))
    one.push()
    await asyncio.sleep(0.03)
    await two.tick()
    assert two.load("a").running == 1
    running.cancel()


async def test_with_the_store_gone_the_leader_goes_on_and_others_loads_are_unknown() -> None:
    condition = Condition()
    replica = bare(RedisStore("redis://127.0.0.1:1/0", "c", "one"), condition)
    replica.leads, replica.peers = True, {"a": PeerLoad(3)}
    await replica.tick()
    assert replica.leads
    assert replica.load("a") == NO_LOAD
    assert not condition.store_up
    await replica.close()


async def test_what_one_replicas_engines_made_the_others_know_and_who_comes_later_too(ring: Ring) -> None:
    first, second, third = Makers(), Makers(), Makers()
    one, two = ring.replica("one", {}, makers=first), ring.replica("two", {}, makers=second)
    first.made("resp_1", "i0")
    second.made("resp_2", "i1")
    for _ in range(2):
        await one.tick()
        await two.tick()
    late = ring.replica("late", {}, makers=third)
    await late.tick()
    for makers in (first, second, third):
        assert (makers.of("resp_1"), makers.of("resp_2")) == ("i0", "i1")
    assert not first.tell()


async def test_the_others_hear_whom_the_leader_fences_and_it_hears_where_somebody_is_missed(
    ring: Ring,
) -> None:
    plans = [PlanShare(), PlanShare()]
    heard: list[int] = []
    plans[1].on_news = lambda: heard.append(1)
    first, second = (ring.replica(name, {}, plan=plan) for name, plan in zip("ab", plans, strict=True))
    plans[0].phases, plans[1].asks = {"i0": Phase.DRAINING}, frozenset({("m", "all")})
    for _ in range(2):
        await first.tick()
        await second.tick()
    assert plans[1].heard_phases == {"i0": Phase.DRAINING}
    assert plans[0].heard_asks == {("m", "all")}
    assert heard == [1], "told once, not with every exchange"


async def test_a_body_that_took_instances_down_here_and_there_is_sent_to_no_third(ring: Ring) -> None:
    here, there, late = Deaths(), Deaths(), Deaths()
    ring.clock = lambda: 100.0
    one, two = ring.replica("one", {}, deaths=here), ring.replica("two", {}, deaths=there)
    three = ring.replica("three", {}, deaths=late)
    here.add(13, "i0", Seconds(100.0))
    there.add(13, "i1", Seconds(100.0))
    there.answered(14)
    here.add(14, "i0", Seconds(100.0))
    here.add(14, "i1", Seconds(100.0))
    for _ in range(2):
        for replica in (one, two, three):
            await replica.tick()
    assert [deaths.condemned(13, Seconds(100.0)) for deaths in (here, there, late)] == [True] * 3
    assert [deaths.condemned(14, Seconds(100.0)) for deaths in (here, there, late)] == [True, False, True]
    ring.clock = lambda: 161.0
    for replica in (one, two, three) * 2:
        await replica.tick()
    assert not any(deaths.condemned(13, Seconds(161.0)) for deaths in (here, there, late))


async def test_alone_it_leads() -> None:
    replica = bare()
    await replica.tick()
    assert replica.leads
    assert replica.count == 1


@dataclass
class Busy:
    """One client that asks three replicas over real Redis for more than its key may have, for a minute."""

    passed: int = 0
    most: int = 0  # at a time
    now: float = 100.0

    async def ask(self, ring: Ring, key: KeyLimits, shares: tuple[int, ...], lasting: float) -> None:
        ring.clock = lambda: self.now
        limits = [RateLimits({"k": key}, Seconds(self.now), name) for name in "abc"]
        replicas = [ring.replica(name, {}, None, each) for name, each in zip("abc", limits, strict=True)]
        running: list[tuple[float, RateLimits]] = []
        for step in range(602):
            for replica in replicas:
                await replica.tick()
            if step < 2:
                continue  # they have met
            self.now += 0.1
            for end, each in [one for one in running if one[0] <= self.now]:
                each.done("k", 10)
                running.remove((end, each))
            for each, share in zip(limits, shares, strict=True):
                sent = _let_in(each, 30 * share // sum(shares), Seconds(self.now))
                running += [(self.now + lasting, each)] * sent
                self.passed += sent
            self.most = max(self.most, len(running))


SHARES = [(1, 1, 1), (1, 0, 0), (8, 1, 1)]


@pytest.mark.parametrize("shares", SHARES)
async def test_three_replicas_keep_a_keys_rpm_together(ring: Ring, shares: tuple[int, ...]) -> None:
    busy = Busy()
    await busy.ask(ring, KeyLimits(rpm=6000), shares, 0.3)
    assert busy.passed == pytest.approx(6000 + 1500, rel=0.05), "a minute's worth, and the burst once"


@pytest.mark.parametrize("shares", SHARES)
async def test_three_replicas_keep_a_keys_tpm_together(ring: Ring, shares: tuple[int, ...]) -> None:
    busy = Busy()
    await busy.ask(ring, KeyLimits(tpm=60_000), shares, 0.3)
    assert busy.passed == pytest.approx(6000 + 1500, rel=0.05), "ten tokens each"


@pytest.mark.parametrize("shares", SHARES)
async def test_three_replicas_keep_a_keys_concurrency_together(ring: Ring, shares: tuple[int, ...]) -> None:
    busy = Busy()
    await busy.ask(ring, KeyLimits(concurrency=60), shares, 3.0)
    assert busy.passed == pytest.approx(60 * 60 / 3.0, rel=0.05), "sixty at a time, three seconds each"
    assert busy.most <= 60


@pytest.mark.parametrize(("limit", "shares"), [(1, (1, 1, 1)), (7, (8, 1, 1))])
async def test_a_small_limit_is_never_passed_nor_lies_idle(
    ring: Ring, limit: int, shares: tuple[int, ...]
) -> None:
    busy = Busy()
    await busy.ask(ring, KeyLimits(concurrency=limit), shares, 1.0)
    assert busy.most <= limit
    assert busy.passed >= 0.75 * limit * 60, "a second each"


def _let_in(limits: RateLimits, asked: int, now: Seconds) -> int:
    for sent in range(asked):
        try:
            limits.take("k", now)
        except RateLimited:
            return sent
    return asked


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("never came true")
