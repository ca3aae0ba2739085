"""Who leads next, and when it has the clocks: three replicas, one agent, in simulated time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from control.verify import VerifyRules
from gpu_agent.lease import Granted, Lease, ask
from joulegate.settings.gateway import Gateway
from joulegate.units import MegaHertz, Seconds
from joulegate.wire import GpuList, LeaseRefused, SyncReply, SyncRequest, WireError
from router.actuate import ActuationRules, Node
from router.agents import Agent
from router.build_fleet import build_fleet
from router.deaths import Deaths
from router.http_client import Reply
from router.observe import Condition
from router.plan_share import PlanShare
from router.pools import Member
from router.power_caps import CapBook
from router.proofs import Proofs
from router.rate_limits import RateLimits
from router.replicas import Replicas
from router.responses import Makers
from router.store import LEADER_TTL_MS, REPLICA_TTL_MS, TIMEOUT, MemoryStore
from tests.fakes.simulated_time import simulate

LEASE = Seconds(2.0)
TICK = Seconds(0.25)
WAY = 0.01  # seconds a message takes at most


def now() -> float:
    return asyncio.get_running_loop().time()


class Cupboard:
    """What Redis would hold."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.longest = WAY
        self.leader, self.until = "", 0.0
        self.loads: dict[str, tuple[float, bytes]] = {}

    async def way(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, self.longest))


class CupboardStore(MemoryStore):
    def __init__(self, cupboard: Cupboard, name: str) -> None:
        self._cupboard = cupboard
        self._name = name

    async def publish(self, load: bytes) -> None:
        await self._cupboard.way()
        self._cupboard.loads[self._name] = now() + REPLICA_TTL_MS / 1e3, load

    async def peers(self) -> Mapping[str, bytes]:
        await self._cupboard.way()
        found = self._cupboard.loads.items()
        return {name: load for name, (until, load) in found if until > now() and name != self._name}

    async def lead(self) -> bool:
        cupboard = self._cupboard
        await cupboard.way()
        if cupboard.leader not in ("", self._name) and now() < cupboard.until:
            return False
        cupboard.leader, cupboard.until = self._name, now() + LEADER_TTL_MS / 1e3
        return True

    async def made(self, responses: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        await self._cupboard.way()
        return ()

    async def resign(self) -> None:
        await self._cupboard.way()
        if self._cupboard.leader == self._name:
            self._cupboard.leader = ""


class AgentEnd:
    """The agent at the other end of every replica's client: one lease, by the agent's own law."""

    def __init__(self, way: Callable[[], Awaitable[None]]) -> None:
        self.takes_back = True  # older ones do not
        self.asked = 0
        self.lease: Lease | None = None
        self.tokens = 0
        self._way = way

    @property
    def holder(self) -> str:
        return "" if self.lease is None or now() >= self.lease.expires else self.lease.holder

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        await self._way()
        return Reply(200, GpuList(node="n", gpus=()).model_dump_json().encode())

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        assert path == "/v1/sync"
        wanted = SyncRequest.model_validate_json(body)
        await self._way()
        if not wanted.ttl_s and not self.takes_back:
            self.asked += 1
            return Reply(400, WireError(error="ttl_s: too short").model_dump_json().encode())
        ttl, at = Seconds(wanted.ttl_s), Seconds(now())
        said = ask(self.lease, wanted.holder, wanted.lease, ttl, at, self.tokens + 1)
        if isinstance(said, Granted):
            self.lease, self.tokens = said.lease, max(self.tokens, said.lease.token)
            reply = SyncReply(lease=said.lease.token, expires_in_s=ttl, restarts=0, gpus=())
            return Reply(200, reply.model_dump_json().encode())
        refusal = LeaseRefused(holder=said.holder, retry_in_s=said.retry_in, message=said.message, gpus=())
        return Reply(409, refusal.model_dump_json().encode())

    async def close(self) -> None:
        return None


class Replica:
    """The loops of one gateway that lead and set clocks."""

    def __init__(self, name: str, cupboard: Cupboard, agent: AgentEnd) -> None:
        self.name = name
        self.replicas = Replicas(
            CupboardStore(cupboard, name),
            {},
            RateLimits({}, Seconds(0.0)),
            Proofs([]),
            Makers(),
            PlanShare(),
            Deaths(),
            Condition(),
            now,
            lambda _: None,
        )
        rules = ActuationRules(TICK, LEASE, VerifyRules())
        ours = Agent("n", agent, name)
        self.node = Node(ours, [lowered()], rules, now, lambda: self.replicas.leads, CapBook(), now)
        self._tasks = [asyncio.create_task(self.replicas.run()), asyncio.create_task(self.node.run())]

    async def die(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def lowered() -> Member:
    served = {"name": "i", "url": "http://h:1", "agent": "n", "gpus": ["g"]}
    models = [{"name": "m", "pools": [{"name": "p", "instances": [served]}]}]
    agents = [{"name": "n", "url": "http://n:1"}]
    fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models, "agents": agents}))
    [(_, _, member)] = fleet.members()
    member.acts, member.target = True, MegaHertz(1200)
    return member


class House:
    """Three replicas that came one after the other, each somewhere in its own rounds."""

    def __init__(self, seed: int) -> None:
        self.cupboard = Cupboard(seed)
        self.agent = AgentEnd(Cupboard(seed).way)  # as far away, and none the slower for the other
        self.living: list[Replica] = []

    async def open(self) -> Replica:
        """Who leads, and holds the lease."""
        for name in "abc":
            self.living.append(Replica(name, self.cupboard, self.agent))
            await asyncio.sleep(self.cupboard.rng.uniform(0.0, 0.3))
        await asyncio.sleep(3.0)
        [head] = [one for one in self.living if one.replicas.leads]
        assert self.agent.holder == head.name
        return head

    async def taken_over(self, gone: Replica) -> float:
        """Seconds until another one holds the lease, and is the only one to lead."""
        start = now()
        while self.agent.holder in ("", gone.name):
            await asyncio.sleep(0.005)
            assert now() < start + 10.0
        took = now() - start
        await asyncio.sleep(1.0)
        [head] = [one for one in self.living if one.replicas.leads]
        assert self.agent.holder == head.name
        return took

    async def close(self) -> None:
        for one in self.living:
            await one.die()


MOMENTS = st.tuples(st.integers(0, 2**32), st.floats(0.0, 1.0))


@given(MOMENTS)
@settings(max_examples=25, deadline=None)
def test_when_the_leader_is_killed_another_has_the_clocks_half_a_second_after_the_lease(
    moment: tuple[int, float],
) -> None:
    async def run() -> float:
        house = House(moment[0])
        head = await house.open()
        await asyncio.sleep(moment[1])
        house.living.remove(head)
        await head.die()
        took = await house.taken_over(head)
        await house.close()
        return took

    assert simulate(run()) <= LEASE + 0.5


@given(MOMENTS)
@settings(max_examples=25, deadline=None)
def test_who_is_told_to_stop_hands_the_clocks_over_while_it_still_serves(moment: tuple[int, float]) -> None:
    async def run() -> float:
        house = House(moment[0])
        head = await house.open()
        await asyncio.sleep(moment[1])
        head.replicas.leaving = True
        took = await house.taken_over(head)
        assert head.replicas.peers is not None, "it is still among them"
        await house.close()
        return took

    assert simulate(run()) <= 4 * TICK


@given(MOMENTS)
@settings(max_examples=10, deadline=None)
def test_a_lease_that_an_older_agent_does_not_take_back_runs_out(moment: tuple[int, float]) -> None:
    async def run() -> tuple[float, int]:
        house = House(moment[0])
        house.agent.takes_back = False
        head = await house.open()
        await asyncio.sleep(moment[1])
        head.replicas.leaving = True
        took = await house.taken_over(head)
        await house.close()
        return took, house.agent.asked

    took, asked = simulate(run())
    assert took <= LEASE + 0.5
    assert asked == 1


@given(MOMENTS)
@settings(max_examples=10, deadline=None)
def test_who_is_told_to_stop_leads_on_where_nobody_stays(moment: tuple[int, float]) -> None:
    async def run() -> None:
        house = House(moment[0])
        head = await house.open()
        others = [one for one in house.living if one is not head]
        for one in house.living:
            one.replicas.leaving = True
        await asyncio.sleep(3.0)
        [now_leading] = [one for one in house.living if one.replicas.leads]
        assert house.agent.holder == now_leading.name
        for one in others:
            await one.die()
        await asyncio.sleep(4.0)
        assert house.agent.holder == head.name
        assert head.replicas.leads
        await house.close()

    simulate(run())


@given(MOMENTS)
@settings(max_examples=10, deadline=None)
def test_a_store_that_just_answers_in_time_changes_no_leader(moment: tuple[int, float]) -> None:
    async def run() -> None:
        house = House(moment[0])
        head = await house.open()
        house.cupboard.longest = 0.95 * TIMEOUT
        for _ in range(80):
            await asyncio.sleep(0.25)
            assert [one for one in house.living if one.replicas.leads] == [head]
            assert house.agent.holder == head.name
        await house.close()

    simulate(run())
