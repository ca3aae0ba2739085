"""What runs is brought to what should run: over instances that stop and start when told, or do not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
import pytest

from control.lifecycle import Patience, Phase, Seen
from control.provision import Provision
from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.actuators import ActuationFailed, Sight
from router.build_fleet import build_fleet
from router.elastic import arrange
from router.engine_metrics import Gauges
from router.fleet import Health
from router.gate import FleetGate
from router.http_client import Reply
from router.plan_share import PlanShare
from router.pools import Fleet, Member, Model
from router.scaler import Limits, Scaled, Scaler

PATIENCE = Patience(drain=Seconds(20.0), tries=2, back_off=Seconds(0.01), given_up=Seconds(20.0))


class Engine:
    """Stops and starts as told; as actuator and as what answers the first token."""

    def __init__(self) -> None:
        self.running = True
        self.says = "Paris"
        self.broken = ""
        self.calls: list[str] = []

    async def look(self) -> Sight:
        return Sight(Seen.RUNNING if self.running else Seen.STOPPED)

    async def start(self) -> None:
        await self._do("start", True)

    async def stop(self) -> None:
        await self._do("stop", False)

    async def close(self) -> None:
        self.calls.append("close")

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        raise NotImplementedError

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        self.calls.append("ask")
        return Reply(200, orjson.dumps({"choices": [{"text": self.says}]}))

    async def _do(self, word: str, running: bool) -> None:
        self.calls.append(word)
        if self.broken:
            raise ActuationFailed(self.broken)
        self.running = running


class House:
    """Instances a, b, c of one pool, each with its engine. `leads` can be turned."""

    def __init__(self) -> None:
        names = ("a", "b", "c")
        pool = {
            "name": "all",
            "instances": [{"name": n, "url": f"http://{n}:1", "engine": "openai"} for n in names],
        }
        self.fleet: Fleet = build_fleet(
            Gateway.model_validate({"version": 1, "models": [{"name": "m", "pools": [pool]}]})
        )
        self.members: dict[str, Member] = {m.law.name: m for _, _, m in self.fleet.members()}
        self.engines = {name: Engine() for name in names}
        for member in self.members.values():
            member.status.health = Health.UP
            member.status.gauges = Gauges(running=0, waiting=0)
        self.leads = True
        self.share = PlanShare()
        self.scaler = Scaler(
            self.fleet,
            {
                name: Scaled(self.members[name], engine, engine, PATIENCE, Limits(10.0, 10.0))
                for name, engine in self.engines.items()
            },
            1,
            lambda: self.leads,
            lambda _: 0,
            self.share,
            lambda: None,
            asyncio.get_running_loop().time,
        )

    def phases(self) -> dict[str, Phase | None]:
        return {name: self.scaler.phase(name) for name in self.engines}

    def want(self, count: int) -> None:
        self.scaler.targets["m", "all"] = count
        self.scaler.wake()

    async def until(self, condition: Callable[[], object]) -> None:
        end = asyncio.get_running_loop().time() + 30.0
        while not condition():
            assert asyncio.get_running_loop().time() < end, self.phases()
            await asyncio.sleep(0.005)


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    made = House()
    running = asyncio.create_task(made.scaler.run())
    try:
        await made.until(lambda: set(made.phases().values()) == {Phase.SERVING})
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await made.scaler.close()
        assert all(engine.calls[-1] == "close" for engine in made.engines.values())


async def test_the_last_listed_is_fenced_stopped_and_started_again() -> None:
    async with house() as it:
        it.want(2)
        await it.until(lambda: it.phases()["c"] is Phase.STOPPED)
        assert it.engines["c"].calls == ["ask", "stop"]
        assert not it.members["c"].status.may_take(0, Seconds(0.0))
        assert it.members["c"].status.why_not(Seconds(0.0)) == "stopped by plan"
        it.want(3)
        await it.until(lambda: it.phases()["c"] is Phase.SERVING)
        assert it.engines["c"].calls == ["ask", "stop", "start", "ask"]
        assert it.members["c"].status.may_take(0, Seconds(1e9))
        ways = [(one.way, one.outcome) for one in it.scaler.transitions.recent]
        assert ways == [("stop", "done"), ("start", "done")]


async def test_one_with_a_request_is_not_stopped_before_it_has_ended() -> None:
    async with house() as it:
        it.members["c"].open = 1
        it.want(2)
        await it.until(lambda: it.phases()["c"] is Phase.DRAINING)
        await asyncio.sleep(1.2)  # the fence is known to all by now
        assert it.phases()["c"] is Phase.DRAINING
        it.members["c"].open = 0
        await it.until(lambda: it.phases()["c"] is Phase.STOPPED)


async def test_they_stop_one_after_the_other() -> None:
    async with house() as it:
        it.want(0)
        most = 0
        while set(it.phases().values()) != {Phase.STOPPED}:
            moving = sum(p in (Phase.DRAINING, Phase.STOPPING) for p in it.phases().values())
            most = max(most, moving)
            await asyncio.sleep(0.005)
        assert most == 1


async def test_one_that_wakes_up_talking_nonsense_is_not_used_and_another_runs_instead() -> None:
    async with house() as it:
        it.want(1)
        await it.until(lambda: list(it.phases().values()).count(Phase.STOPPED) == 2)
        it.engines["b"].says = "!!!!"
        it.want(2)
        await it.until(lambda: it.phases()["b"] is Phase.FAILED)
        await it.until(lambda: it.phases()["c"] is Phase.SERVING)
        life = it.scaler.scaled["b"].life
        assert "it answers '!!!!' where it said 'Paris' before" in life.problem
        assert it.members["b"].status.why_not(Seconds(0.0)) == "failed by plan"
        assert not it.members["b"].status.comes_back


async def test_one_that_does_not_stop_serves_on() -> None:
    async with house() as it:
        it.engines["c"].broken = "no route"
        it.want(2)
        await it.until(lambda: it.scaler.scaled["c"].life.failures == 2)
        await it.until(lambda: it.phases()["c"] is Phase.SERVING)
        assert it.scaler.scaled["c"].life.problem == "no route"
        assert {one.outcome for one in it.scaler.transitions.recent} == {"failed"}


async def test_what_others_stopped_is_not_used_and_what_others_started_is_asked_first() -> None:
    async with house() as it:
        it.scaler.scaled["a"].looked = Seconds(-1e9)
        it.want(3)
        it.engines["a"].running = False
        it.engines["a"].broken = "it is mine"
        it.scaler.scaled["a"].looked = Seconds(-1e9)
        await it.until(lambda: it.phases()["a"] is not Phase.SERVING)
        it.engines["a"].broken = ""
        it.engines["a"].running = True
        it.scaler.scaled["a"].looked = Seconds(-1e9)
        await it.until(lambda: it.phases()["a"] is Phase.SERVING)
        assert "ask" in it.engines["a"].calls


async def test_who_follows_acts_on_nothing_and_keeps_away_from_whom_the_leader_fences() -> None:
    async with house() as it:
        it.want(2)
        await it.until(lambda: it.phases()["c"] is Phase.STOPPED)
        assert it.share.phases == {"c": Phase.STOPPED}
        it.leads = False
        it.share.hear({"a": Phase.DRAINING, "b": Phase.FAILED}, frozenset())
        await it.until(lambda: it.members["a"].status.fenced)
        assert it.share.phases == {}
        assert (it.members["a"].status.comes_back, it.members["b"].status.comes_back) == (True, False)
        it.share.hear({}, frozenset())
        await it.until(lambda: not it.members["a"].status.fenced)
        it.leads = True
        it.scaler.wake()
        await it.until(lambda: it.phases() == {"a": Phase.SERVING, "b": Phase.SERVING, "c": Phase.STOPPED})


async def test_where_another_replica_misses_somebody_one_is_started() -> None:
    async with house() as it:
        it.want(0)
        await it.until(lambda: set(it.phases().values()) == {Phase.STOPPED})
        it.share.hear({}, frozenset({("m", "all")}))
        await it.until(lambda: it.phases()["a"] is Phase.SERVING)
        assert it.phases()["b"] is Phase.STOPPED


def elastic_fleet() -> Fleet:
    pools = [
        {
            "name": "short",
            "types": ["SS", "SM", "MS", "MM"],
            "instances": [{"name": "a", "url": "http://a:1"}],
        },
        {
            "name": "long",
            "types": ["SL", "ML", "LS", "LM", "LL"],
            "instances": [{"name": "b", "url": "http://b:1"}],
        },
    ]
    return build_fleet(Gateway.model_validate({"version": 1, "models": [{"name": "m", "pools": pools}]}))


class Gate(FleetGate):
    """Only what moves."""

    def __init__(self) -> None:
        self.moved: list[tuple[str, str]] = []

    def rehome(self, guest: object, host: object) -> None:
        self.moved.append((guest.name, host.name))  # type: ignore[attr-defined]

    def changed(self, now: Seconds) -> None:
        return None


def held(model: Model, pool: str) -> list[str]:
    return [member.law.name for member in model.pools[pool].members]


def test_a_merged_pool_is_one_with_its_host_and_a_split_takes_it_back() -> None:
    fleet, gate = elastic_fleet(), Gate()
    model = next(fleet.unique())
    before = {name: pool.rules for name, pool in model.pools.items()}
    merged = Provision({"long": 2}, {"short": "long"}, 1.0, None, ())
    assert arrange(model, merged, gate, Seconds(0.0))
    assert gate.moved == [("short", "long")]
    assert (held(model, "long"), held(model, "short")) == (["a", "b"], [])
    assert [rules.name for rules in model.rules] == ["long"]
    assert len(model.rules[0].types) == 9
    assert b"x-joulegate-pool: long" in model.members["a"].header_lines
    assert not arrange(model, merged, gate, Seconds(0.0)), "it is so already"
    assert arrange(model, Provision({"short": 1, "long": 1}, {}, 1.0, None, ()), gate, Seconds(0.0))
    assert {name: pool.rules for name, pool in model.pools.items()} == before
    assert held(model, "short") == ["a"]


@pytest.mark.parametrize("up", [True, False])
def test_a_label_moves_and_the_laws_know(up: bool) -> None:
    fleet, gate = elastic_fleet(), Gate()
    model = next(fleet.unique())
    for member in model.members.values():
        member.law.ready = up
    arrange(model, Provision({"short": 2, "long": 0}, {}, 1.0, None, ()), gate, Seconds(0.0))
    assert held(model, "short") == ["a", "b"]
    assert model.steering.pools["short"].instances == 2
