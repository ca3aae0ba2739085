"""Shell: the control tick: observe -> project -> choose; `router.actuate` does the rest per node.

Every 250 ms, and at once when load steps up. It yields to the event loop after every 2 ms of work: a
request's bytes never wait for control.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from control.admission import learned_slots
from control.holdback import measure
from control.state import Gauges, PeerPrompts
from joulegate.units import Joules, MegaHertz, Seconds
from joulegate.wire import GpuState
from router.accounts import Accounts, estimate, expect, metered, unmetered
from router.actuate import Node
from router.gate import FleetGate
from router.news import news
from router.pools import Fleet, Member, Model, Pool
from router.ports import Engine
from router.power_tick import PowerTick
from router.replica_load import PeerLoad
from router.rescue import Rescue
from router.tally import Tally

WORK = 0.002  # seconds of work between two yields
LESSONS = 40  # predictor updates a tick: each takes up to 100 us
BETWEEN = 10  # of them between two looks at whether to yield
MEASURE_EVERY = 60.0  # seconds between two measures of the saving by holdback
log = logging.getLogger(__name__)
HELD = "holdback"  # reason of a block at default clocks, by lot
GAUGES_FRESH = 3.0  # seconds; older gauges say nothing


class ControlTick:
    """One gateway's loop. `nodes` by the name of their agent."""

    def __init__(
        self,
        fleet: Fleet,
        gate: FleetGate,
        accounts: Accounts,
        tally: Tally,
        nodes: Mapping[str, Node],
        peers: Callable[[str], PeerLoad],
        power: PowerTick,
        rescue: Rescue,
        leads: Callable[[], bool],
        period: Seconds,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._gate = gate
        self._accounts = accounts
        self._tally = tally
        self._nodes = nodes
        self._peers = peers
        self._power = power
        self._rescue = rescue
        self._leads = leads
        self._period = period
        self._clock = clock
        self._wall = wall
        self._stepped_up = asyncio.Event()
        self._yielded = 0.0
        self._measured = 0.0

    def wake(self) -> None:
        """Load stepped up: tick now."""
        self._stepped_up.set()

    async def run(self) -> None:
        while True:
            await news(self._stepped_up, self._period)
            await self.tick()

    async def tick(self) -> None:
        """One step for the whole fleet."""
        self._yielded = self._clock()
        for _, pool in self._fleet.pools():
            self._rest(pool, Seconds(self._clock()))
        for model, pool, member in self._fleet.members():
            node = self._nodes.get(member.agent or "")
            self._observe(member, node, Seconds(self._clock()))
            self._choose(model, pool, member, Seconds(self._clock()))
            await self._breathe()
        self._aim()
        self._gate.changed(Seconds(self._clock()))
        self._rescue.tick(Seconds(self._clock()))
        for _ in range(LESSONS // BETWEEN):
            self._accounts.teach(BETWEEN)
            await self._breathe()
        if self._clock() - self._measured >= MEASURE_EVERY:
            self._measured = self._clock()
            blocks = [block for _, _, member in self._fleet.members() for block in member.holdback.blocks]
            self._tally.saving = await asyncio.to_thread(measure, blocks)

    def _observe(self, member: Member, node: Node | None, now: Seconds) -> None:
        """Bring what the laws read of an instance up to date."""
        law, status = member.law, member.status
        estimate(member, now)
        gauges, others = status.gauges, self._peers(law.name)
        law.peer_prompts = None
        if others.prompts:
            law.peer_prompts = PeerPrompts(others.prompt_tokens, Seconds(now + others.due_in))
        law.gauges = None
        fresh = gauges.running is not None and now - status.gauges_at <= GAUGES_FRESH
        law.unseen = not fresh and member.endpoint.engine is not Engine.OPENAI
        if gauges.running is not None and fresh:
            waiting = len(law.book.prompts) + max(0, status.waiting_elsewhere - others.prompts)
            running = law.book.running + max(status.running_elsewhere, others.running)
            law.gauges = Gauges(running, waiting, status.gauges_at)
            law.slots = learned_slots(law.slots, gauges.running, gauges.waiting or 0, member.known_slots)
        elif others.running:
            law.gauges = Gauges(law.book.running + others.running, 0, now)
        member.follow(gauges)
        view = None if node is None else node.agent.view
        if view is not None and view.up and all(gpu in view.gpus for gpu in member.gpus):
            infos = [view.infos[gpu] for gpu in member.gpus if gpu in view.infos]
            member.speed.knows_clocks([MegaHertz(c) for info in infos[:1] for c in info.clocks_mhz])
            law.telemetry_at = view.seen
            gpus = [view.gpus[gpu] for gpu in member.gpus if gpu in view.gpus]
            law.switch = max((Seconds(gpu.actuation_s) for gpu in gpus if gpu.actuation_s), default=None)
            joules = self._meter(member, gpus)
            member.energy.watts, member.energy.read_at = sum(gpu.power_w for gpu in gpus), view.seen
            member.holdback.tick(joules, member.acts and member.limit is None, Seconds(self._wall()))
        else:
            unmetered(member)
        member.speed.tick(law, now)

    def _rest(self, pool: Pool, now: Seconds) -> None:
        """A pool whose objectives burn is left alone for a while, then governed again."""
        if pool.resting != pool.said_resting:
            log.warning("control rests", extra={"pool": pool.name, "rests": pool.resting})
        pool.said_resting = pool.resting
        pool.resting = pool.burn.rests(now)

    def _meter(self, member: Member, gpus: list[GpuState]) -> Joules:
        """Joules since last seen: whose they are, and what the same work would have cost at maximum clock."""
        total = 0.0
        for gpu in gpus:
            before = member.energy_at.get(gpu.uuid)
            member.energy_at[gpu.uuid] = gpu.energy_j
            if (
                before is not None and gpu.energy_j >= before
            ):  # not the first look, nor a counter that restarted
                total += gpu.energy_j - before
        if total > 0.0:
            member.tally.joules += total
            member.speed.window.joules += total / len(gpus)
            member.tally.baseline_joules += total * _dearer_at_max(member)
            metered(member, Joules(total), self._tally)
            self._tally.footprint.add(Joules(total), self._wall())
        return Joules(total)

    def _choose(self, model: Model, pool: Pool, member: Member, now: Seconds) -> None:
        """Ask the laws for a clock, and remember why."""
        decision = model.steering.tick(member.law, now)
        expect(member)
        before = member.decision
        member.decision = decision
        held = member.holdback.held and member.acts
        name = HELD if held else decision.reason.value
        member.tally.decisions[name] = member.tally.decisions.get(name, 0) + 1
        if before is None or (before.clock, before.reason) != (decision.clock, decision.reason):
            self._fleet.decisions.append(decision)
        may = member.proven or not self._leads()  # who does not lead only raises, and that is always safe
        member.acts = pool.acts and may and not member.distrusted
        wanted = pool.static_clock if pool.mode == "static" else decision.clock
        member.wanted = wanted if member.acts and not held else None

    def _aim(self) -> None:
        """What the laws want, as far as the power budgets let them; nodes are told of changes."""
        now = Seconds(self._clock())
        self._power.tick(now)
        for _, _, member in self._fleet.members():
            target = lower(member.wanted, member.limit)
            if target == member.target:
                continue
            member.tally.clock_changes += 1
            member.target, member.target_at, member.assertions = target, now, 0
            if (node := self._nodes.get(member.agent or "")) is not None:
                node.changed()

    async def _breathe(self) -> None:
        if self._clock() - self._yielded >= WORK:
            await asyncio.sleep(0)
            self._yielded = self._clock()


def lower(one: MegaHertz | None, other: MegaHertz | None) -> MegaHertz | None:
    """The tighter of two ceilings."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _dearer_at_max(member: Member) -> float:
    """Energy of the present step at maximum clock over that at the clock in force, for the same tokens.

    Only the busy part is compared: idle watts are the same at any clock. Estimated, and called so.
    """
    law, batch = member.law, member.batch()
    if law.model is None or law.clock is None or batch.decoding == 0:
        return 1.0
    top = law.model.clocks[-1]
    here = law.model.watts(batch, law.clock) * law.model.iteration_time(batch, law.clock)
    there = law.model.watts(batch, top) * law.model.iteration_time(batch, top)
    return there / here if here > 0 else 1.0
