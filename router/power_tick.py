"""Shell: the power budgets at every control tick: look at the GPUs, plan, and hold instances to the plan."""

import logging
from collections.abc import Mapping
from pathlib import Path

from control.power_budget import Phase
from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import GpuInfo, GpuState
from router.agents import Agent
from router.pools import Fleet, Member, Pool
from router.power import STALE, Feed, PowerKeeper

log = logging.getLogger(__name__)
HEAT = frozenset({"thermal", "hw_thermal", "hw_slowdown", "power_brake"})  # a GPU in trouble says so


class PowerTick:
    """`alarm`: the file that means an emergency while it exists."""

    def __init__(
        self, fleet: Fleet, agents: Mapping[str, Agent], keeper: PowerKeeper, alarm: Path | None
    ) -> None:
        self.keeper = keeper
        self.alarm = alarm
        self._fleet = fleet
        self._agents = agents
        self._said = Phase.NORMAL

    def tick(self, now: Seconds) -> None:
        """Sets `limit` of every instance, and whether requests should rather go elsewhere."""
        keeper = self.keeper
        if not keeper.idle:
            nodes = {name: frozenset(agent.view.infos) for name, agent in self._agents.items()}
            keeper.plan(self._feeds(now), nodes, self.alarm is not None and self.alarm.exists(), now)
            self._say()
        for _, _, member in self._fleet.members():
            limits = [keeper.limits[gpu] for gpu in member.gpus if gpu in keeper.limits]
            member.limit = min(limits, default=None)
            member.law.limited = member.limit is not None or self._hot(member)

    def _feeds(self, now: Seconds) -> dict[str, Feed]:
        owners = {gpu: (pool, member) for _, pool, member in self._fleet.members() for gpu in member.gpus}
        feeds: dict[str, Feed] = {}
        for agent in self._agents.values():
            fresh = agent.view.up and now - agent.view.seen <= STALE
            for uuid, state in agent.view.gpus.items():
                info = agent.view.infos.get(uuid)
                pool, member = owners.get(uuid, (None, None))
                feeds[uuid] = _feed(state, fresh, info, pool, member)
        return feeds

    def _hot(self, member: Member) -> bool:
        agent = self._agents.get(member.agent or "")
        if agent is None or not agent.view.up:
            return False
        gpus = [agent.view.gpus[gpu] for gpu in member.gpus if gpu in agent.view.gpus]
        hot = self.keeper.rules.hot
        return any(gpu.temperature_c >= hot or not HEAT.isdisjoint(gpu.reasons) for gpu in gpus)

    def _say(self) -> None:
        emergency = self.keeper.emergency
        if emergency.phase is not self._said:
            self._said = emergency.phase
            fields = {"phase": emergency.phase.value, "budgets_at": emergency.ratio}
            log.warning("power budgets", extra=fields)


def _feed(
    state: GpuState, fresh: bool, info: GpuInfo | None, pool: Pool | None, member: Member | None
) -> Feed:
    """Nobody's GPU, or one whose clock is not ours to set, is only counted."""
    low_high = info.cap_range_w if info is not None else None
    caps = None if low_high is None else (Watts(low_high[0]), Watts(low_high[1]))
    if pool is None or member is None or member.distrusted or not member.proven:
        return Feed(state, fresh, caps)
    if info is None or not info.writable:
        return Feed(state, fresh, caps)
    lowest = MegaHertz(info.allowed_mhz[0])
    return Feed(state, fresh, caps, member.law.model, member.wanted, pool.power_priority, lowest)
