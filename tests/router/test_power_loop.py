"""The shell around the budgets: what it sees through agents, whom it holds, what it tells them of caps."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from control.mapping import Proof, Standing
from control.power_budget import Phase
from control.verify import VerifyRules
from joulegate.settings.gateway import Gateway
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import CapsReply, CapsRequest, CapState, GpuInfo, GpuList, GpuState, WireError
from router.actuate import ActuationRules, Node
from router.agents import Agent
from router.build_fleet import build_fleet
from router.http_client import Reply
from router.pools import Fleet, Member
from router.power import Named, PowerKeeper, PowerRules
from router.power_tick import PowerTick
from simulator.demo_cli import PROFILE

TOP = 1980
CLOCKS = tuple(range(210, TOP + 1, 15))


class NodeOfTwo:
    """An agent with two GPUs, at the other end of a client. `refuses`: it sets no caps."""

    def __init__(self) -> None:
        self.watts = [600.0, 600.0]
        self.celsius = [50.0, 50.0]
        self.reasons: list[tuple[str, ...]] = [(), ()]
        self.writable = True
        self.refuses = ""
        self.caps: dict[str, float | None] = {}
        self.epochs: list[int] = []

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        infos = tuple(
            GpuInfo(
                uuid=f"g{i}",
                index=i,
                name="gpu",
                clocks_mhz=CLOCKS,
                allowed_mhz=(1200, TOP),
                cap_range_w=(200.0, 700.0),
                writable=self.writable,
            )
            for i in range(2)
        )
        return Reply(200, GpuList(node="n", infos=infos, gpus=self._states()).model_dump_json().encode())

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        assert path == "/v1/caps"
        if self.refuses:
            return Reply(409, WireError(error=self.refuses).model_dump_json().encode())
        asked = CapsRequest.model_validate_json(body)
        self.epochs.append(asked.epoch)
        self.caps.update(asked.caps)
        states = {u: CapState(cap_w=cap or 700.0, wanted_w=cap) for u, cap in asked.caps.items()}
        return Reply(200, CapsReply(epoch=asked.epoch, caps=states).model_dump_json().encode())

    async def close(self) -> None:
        return None

    def _states(self) -> tuple[GpuState, ...]:
        return tuple(
            GpuState(
                uuid=f"g{i}",
                index=i,
                name="gpu",
                clock_mhz=TOP,
                ceiling_mhz=None,
                power_w=self.watts[i],
                energy_j=0.0,
                temperature_c=self.celsius[i],
                reasons=self.reasons[i],
                observed_at_s=0.0,
            )
            for i in range(2)
        )


class House:
    """Two instances on two GPUs of one node, under one budget."""

    def __init__(self, budget: float, alarm: Path | None = None) -> None:
        self.wire = NodeOfTwo()
        self.agent = Agent("n", self.wire, "gateway")
        self.fleet: Fleet = build_fleet(_settings())
        self.members: Sequence[Member] = [member for _, _, member in self.fleet.members()]
        for member in self.members:
            member.proof = Proof(Standing.PROVEN)
        self.keeper = PowerKeeper(PowerRules(True, (Named("rack", Watts(budget), agents=("n",)),)))
        self.power = PowerTick(self.fleet, {"n": self.agent}, self.keeper, alarm)
        rules = ActuationRules(Seconds(0.25), Seconds(2.0), VerifyRules())
        self.now = 0.0
        self.node = Node(
            self.agent, (), rules, lambda: self.now, lambda: True, self.keeper.caps, lambda: 5000.0 + self.now
        )

    async def tick(self) -> None:
        self.now += 1.0
        await self.agent.discover(Seconds(self.now))
        self.power.tick(Seconds(self.now))
        await self.node.act()

    @property
    def limits(self) -> list[MegaHertz | None]:
        return [member.limit for member in self.members]


def _settings() -> Gateway:
    place = {"agent": "n", "profile": shipped(PROFILE)}
    one, two = ({"name": f"i{i}", "url": f"http://h:{i + 1}", "gpus": [f"g{i}"], **place} for i in range(2))
    rest = ["SM", "SL", "MS", "MM", "ML", "LS", "LM", "LL"]
    pools = [
        {"name": "first", "types": ["SS"], "power_priority": 1, "instances": [one]},
        {"name": "rest", "types": rest, "instances": [two]},
    ]
    agents = [{"name": "n", "url": "http://n:1"}]
    return Gateway.model_validate({"version": 1, "models": [{"name": "m", "pools": pools}], "agents": agents})


async def test_the_less_important_pool_is_held_and_asked_last_and_caps_follow() -> None:
    house = House(budget=1050.0)
    await house.tick()
    first, second = house.limits
    assert first is None
    assert second is not None
    assert second >= 1200, "not lower than the agent lets anybody ask for"
    assert [member.law.limited for member in house.members] == [False, True]
    assert sum(cap or 700.0 for cap in house.wire.caps.values()) <= 1050.0
    assert house.wire.epochs == [5_001_000]


@pytest.mark.parametrize("why", ["unproven", "distrusted", "watched only"])
async def test_clocks_that_are_not_ours_are_left_to_the_caps(why: str) -> None:
    house = House(budget=1050.0)
    for member in house.members:
        member.proof = Proof() if why == "unproven" else member.proof
        member.distrusted = "it does not obey" if why == "distrusted" else ""
    house.wire.writable = why != "watched only"
    await house.tick()
    assert house.limits == [None, None]
    assert sum(cap or 700.0 for cap in house.wire.caps.values()) <= 1050.0


async def test_a_node_that_sets_no_caps_is_named_and_clocks_do_what_they_can() -> None:
    house = House(budget=1050.0)
    house.wire.refuses = "allow_writes is false"
    await house.tick()
    assert "allow_writes is false" in house.keeper.caps.refusals["n"]
    assert house.limits[1] is not None
    house.wire.refuses = ""
    await house.tick()
    assert house.keeper.caps.refusals == {}
    assert house.wire.caps


async def test_the_file_is_the_emergency(tmp_path: Path) -> None:
    alarm = tmp_path / "on-battery"
    house = House(budget=1400.0, alarm=alarm)
    await house.tick()
    assert house.limits == [None, None]
    alarm.touch()
    await house.tick()
    assert house.keeper.emergency.phase is Phase.EMERGENCY
    assert house.limits[1] is not None


@pytest.mark.parametrize(
    ("celsius", "reasons"), [(90.0, ()), (50.0, ("hw_thermal",)), (50.0, ("power_brake",))]
)
async def test_a_hot_gpu_is_asked_last_budget_or_not(celsius: float, reasons: tuple[str, ...]) -> None:
    house = House(budget=5000.0)
    house.keeper.rules = PowerRules()
    house.wire.celsius[0], house.wire.reasons[0] = celsius, reasons
    await house.tick()
    assert [member.law.limited for member in house.members] == [True, False]
    assert house.wire.caps == {}


async def test_caps_that_somebody_before_has_left_stay_until_an_operator_says_otherwise() -> None:
    house = House(budget=1050.0)
    house.keeper.rules = PowerRules()
    await house.tick()
    assert house.wire.caps == {}
    house.keeper.caps.adopt({"g0": 450.0})
    await house.tick()
    assert house.wire.caps == {"g0": None}
