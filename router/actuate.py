"""Shell: one node's side of the control loop: actuate -> verify.

Every node has its own loop, so that a dead agent delays nobody else. It runs each tick, and at once when a
target changed.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from control.verify import Action, VerifyRules, judge
from joulegate.units import MegaHertz, Seconds
from router.agents import Agent
from router.news import news
from router.pools import Member
from router.power_caps import CapBook

log = logging.getLogger(__name__)
OBSERVE_EVERY = 1.0  # seconds between two looks at a node whose clocks are not ours
CAP_EVERY = 0.5  # seconds between two changes of a node's caps: each costs its agent a disk write


@dataclass(frozen=True, slots=True)
class ActuationRules:
    period: Seconds
    lease_ttl: Seconds
    verify: VerifyRules


class Node:
    """The instances behind one agent. `leads`: whether this replica may ask for leases."""

    def __init__(
        self,
        agent: Agent,
        members: Sequence[Member],
        rules: ActuationRules,
        clock: Callable[[], float],
        leads: Callable[[], bool],
        caps: CapBook,
        wall: Callable[[], float],
    ) -> None:
        """`wall`: unix time, which orders the caps of replicas that lead one after the other."""
        self.agent = agent
        self.members = members
        self._rules = rules
        self._clock = clock
        self._leads = leads
        self._caps = caps
        self._wall = wall
        self._capped = float("-inf")
        self._changed = asyncio.Event()
        self._looked = float("-inf")

    def changed(self) -> None:
        """A target changed: act now."""
        self._changed.set()

    async def run(self) -> None:
        while True:
            await news(self._changed, self._pause())
            await self.act()

    def _pause(self) -> float:
        """Seconds until the next look: a period, or less where another's lease ends before."""
        left = self.agent.view.held_until - self._clock()
        return min(self._rules.period, left) if left > 0.0 else self._rules.period

    async def act(self) -> None:
        """One round trip: set what is wanted, see what is."""
        agent, now = self.agent, Seconds(self._clock())
        if not agent.view.infos or not agent.view.up:
            await agent.discover(now)
        acting = [member for member in self.members if member.held]
        if (acting or agent.view.lease is not None) and self._leads():
            targets = {gpu: self._snapped(gpu, m.target) for m in self.members for gpu in m.gpus}
            groups = [member.gpus for member in acting]
            held = await agent.sync(targets, groups, self._rules.lease_ttl, _why(acting), now)
        else:
            held = False
            await self.release("another gateway leads")
            if now - self._looked >= OBSERVE_EVERY:
                self._looked = now
                await agent.discover(now)
        if not held and agent.view.up:
            await self._raise_only(acting, now)
        if agent.view.up and self._leads() and now - self._capped >= CAP_EVERY:
            await self._cap(now)
        for member in self.members:
            self._verify(member, Seconds(self._clock()))

    async def release(self, why: str) -> None:
        """Give every clock and the lease back, if it is held."""
        if self.agent.view.lease is not None:
            await self.agent.give_back(why, Seconds(self._clock()))

    async def _cap(self, now: Seconds) -> None:
        """Move the node's power caps towards what the budgets ask for."""
        name, caps = self.agent.name, self._caps
        due = caps.due(self.agent.view.infos)
        if not due:
            return
        self._capped = now
        answer = await self.agent.cap(due, int(self._wall() * 1e3), "power budget")
        if isinstance(answer, str):
            if caps.refusals.get(name) != answer:
                log.error("power caps not set", extra={"agent": name, "why": answer})
            caps.refused(name, answer)
            return
        set_ = {uuid: cap.cap_w or inf for uuid, cap in answer.items() if cap.fault is None}
        caps.confirm(name, {u: inf if due[u] is None else watts for u, watts in set_.items() if u in due})
        await self.agent.discover(now)

    async def _raise_only(self, acting: Sequence[Member], now: Seconds) -> None:
        """Somebody else holds the lease. Lowering is theirs; a raise is anybody's."""
        floors: dict[str, MegaHertz] = {}
        for member in acting:
            ceiling = self._ceiling(member)
            if member.target is not None and ceiling is not None and member.target > ceiling:
                floors.update(dict.fromkeys(member.gpus, member.target))
        if floors:
            await self.agent.boost(floors, Seconds(1.0), _why(acting), now)

    def _verify(self, member: Member, now: Seconds) -> None:
        """Compare what the GPUs do with what they were told; the model works with what is seen."""
        law, agent = member.law, self.agent
        gpus = [agent.view.gpus[g] for g in member.gpus if g in agent.view.gpus]
        if not gpus or not agent.view.up:
            law.clock = None
            return
        law.clock = self._ceiling(member)
        slowest = min(gpus, key=lambda g: g.clock_mhz)
        for gpu in gpus:
            ceiling = None if gpu.ceiling_mhz is None else MegaHertz(gpu.ceiling_mhz)
            verdict = judge(
                ceiling if member.target is not None else None,
                MegaHertz(gpu.clock_mhz),
                gpu.reasons,
                member.target_at,
                member.assertions,
                self._rules.verify,
                now,
            )
            member.assertions = max(member.assertions, verdict.attempts)
            if verdict.action is Action.FAIL_UP:
                member.distrusted = verdict.sentence
                log.error("clocks left alone", extra={"instance": law.name, "why": verdict.sentence})
            elif verdict.action is Action.HOLD and "idle" not in slowest.reasons and law.clock is not None:
                law.clock = min(law.clock, MegaHertz(slowest.clock_mhz))

    def _ceiling(self, member: Member) -> MegaHertz | None:
        """The lowest ceiling over the instance's GPUs; None: the driver's default."""
        ceilings = [self.agent.view.gpus[g].ceiling_mhz for g in member.gpus if g in self.agent.view.gpus]
        set_ = [c for c in ceilings if c is not None]
        return MegaHertz(min(set_)) if set_ else None

    def _snapped(self, gpu: str, target: MegaHertz | None) -> MegaHertz | None:
        """A supported clock, not below what was chosen; the profile's GPU may have other steps."""
        info = self.agent.view.infos.get(gpu)
        if target is None or info is None:
            return target
        above = [c for c in info.clocks_mhz if c >= target]
        return MegaHertz(above[0]) if above else None


def _why(members: Sequence[Member]) -> str:
    """The sentence the agent's audit log gets: that of the latest change."""
    latest = max(members, key=lambda m: m.target_at, default=None)
    if latest is None or latest.decision is None:
        return "nothing to hold"
    return latest.decision.sentence
