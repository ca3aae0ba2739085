"""Shell: brings what runs to what should run: for each instance looks, asks the table, acts.

Level-triggered: nothing is remembered that cannot be seen again, so a gateway that is started in the middle
of a transition, or that takes the lead, goes on from what it finds. Only the leader acts. The table is
`control.lifecycle`, which ones should run is `control.turnout`; how many, the planner says in `targets`.
A pool in which requests wait and nothing serves has one instance started, whatever the plan.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from itertools import islice

from control.admission import layout
from control.lifecycle import COMES_BACK, Act, Facts, Life, Patience, Phase, Seen, step
from control.turnout import Candidate, movers, turnout
from joulegate.units import Joules, Seconds
from router.actuators import ActuationFailed, Actuator, Sight
from router.canary import answer
from router.fleet import Health
from router.http_client import ControlClient
from router.news import news
from router.plan_share import PlanShare
from router.pools import Fleet, Member, Model, Pool
from router.ports import Engine
from router.transitions import Transition, Transitions

log = logging.getLogger(__name__)
PERIOD = 0.25  # seconds between two ticks
LOOK_EVERY = Seconds(5.0)  # at an instance that rests
LOOK_FIRST = Seconds(0.5)  # until it is known whether it runs
POLL = 0.05  # seconds between two looks at one that is on its way, at first
POLL_MOST = 1.0
QUIET_FOR = 1.0  # seconds after the fence until all who send requests know of it
CHECK_WITHIN = 35.0
NOT_SEEN = Sight(Seen.UNKNOWN)
TITLES = {Act.STOP: "stop", Act.START: "start", Act.CHECK: "start"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that one instance may take."""

    stop: float
    start: float


@dataclass(slots=True, eq=False)
class Scaled:
    """One instance that can be stopped and started. `client` reaches it."""

    member: Member
    actuator: Actuator
    client: ControlClient
    patience: Patience
    limits: Limits
    life: Life = field(default_factory=Life)
    sight: Sight = NOT_SEEN
    looked: Seconds = Seconds(float("-inf"))
    wanted: bool = True
    looking: asyncio.Task[None] | None = None
    work: asyncio.Task[None] | None = None
    done: bool | None = None  # how the last work ended, until the table has heard of it
    problem: str = ""
    known: str | None = None  # its answer before it was stopped
    began: tuple[Seconds, float] | None = None  # a transition, and the joules metered before it


class Scaler:
    """`targets`: instances that should run, by model and pool; a pool not in it stays as it is."""

    def __init__(
        self,
        fleet: Fleet,
        scaled: Mapping[str, Scaled],
        at_once: int,
        leads: Callable[[], bool],
        elsewhere: Callable[[str], int],
        share: PlanShare,
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`elsewhere`: requests that other replicas have at an instance; `changed`: who is fenced changed."""
        self.targets: dict[tuple[str, str], int] = {}
        self.scaled = scaled
        self.transitions = Transitions()
        self._fleet = fleet
        self._at_once = at_once
        self._leads = leads
        self._elsewhere = elsewhere
        self._share = share
        share.on_news = self.wake
        self._changed = changed
        self._clock = clock
        self._news = asyncio.Event()
        self._led = False
        self._tasks: set[asyncio.Task[None]] = set()

    def phase(self, instance: str) -> Phase | None:
        """Where it stands; None: it always runs."""
        each = self.scaled.get(instance)
        return None if each is None else each.life.phase

    def wake(self) -> None:
        """A request waits, or a transition went on: tick now."""
        self._news.set()

    async def run(self) -> None:
        try:
            while True:
                self.tick()
                await news(self._news, PERIOD)
        finally:
            self._let_go()

    def tick(self) -> None:
        """A look at those that are due, and one step for every instance by what was seen."""
        if not self._leads():
            self._let_go()
            self._follow()
            return
        self._led = True
        self._share.asks = frozenset()
        now = Seconds(self._clock())
        for each in self.scaled.values():
            if self._is_due(each, now):
                each.looked = now
                each.looking = self._task(self._look(each))
        for model in self._fleet.unique():
            needed = self._needed(model) | {pool for of, pool in self._share.heard_asks if of == model.name}
            for pool in model.pools.values():
                self._pool(model, pool, 1 if pool.name in needed else 0)
        self._share.phases = {n: each.life.phase for n, each in self.scaled.items() if each.life.fenced}

    def _follow(self) -> None:
        """Send nothing to whom the leader fences; tell it where somebody is missed."""
        changed = False
        for name, each in self.scaled.items():
            phase, status = self._share.heard_phases.get(name), each.member.status
            fenced = "" if phase is None else f"{phase.value} by plan"
            if status.fenced != fenced:
                status.fenced, status.comes_back = fenced, phase in COMES_BACK
                changed = True
        if changed:
            self._changed()
        self._share.asks = frozenset(
            (model.name, pool) for model in self._fleet.unique() for pool in self._needed(model)
        )

    async def close(self) -> None:
        """After `run` has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.actuator.close() for each in self.scaled.values()))

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what should run

    def _needed(self, model: Model) -> set[str]:
        """Pools that must have somebody now: requests wait that nobody can serve."""
        if not model.steering.queued:
            return set()
        found: set[str] = set()
        places = layout(model.steering.queues, [member.law for member in model.members.values()])
        for tiers in places.values():
            if tiers[0].queue.waiting and not any(law.ready for tier in tiers for law in tier.instances):
                able = (t for t in tiers if any(self._comes_back(model, law.name) for law in t.instances))
                found.update(tier.queue.rules.name for tier in islice(able, 1))
        return found

    def _comes_back(self, model: Model, name: str) -> bool:
        return model.members[name].status.comes_back

    def _pool(self, model: Model, pool: Pool, least: int) -> None:
        now = Seconds(self._clock())
        candidates = [self._candidate(member) for member in pool.members]
        target = self.targets.get((model.name, pool.name))
        if target is None:
            target = sum(c.phase in (Phase.SERVING, Phase.UNSEEN) for c in candidates)
        wanted = turnout(candidates, max(target, least))
        may_move = movers(candidates, wanted, self._at_once)
        for member in pool.members:
            each = self.scaled.get(member.law.name)
            if each is not None:
                each.wanted = member.law.name in wanted
                self._step(each, member.law.name in may_move, now)

    def _candidate(self, member: Member) -> Candidate:
        phase, healthy = self.phase(member.law.name), member.status.health is not Health.DOWN
        return Candidate(member.law.name, phase or Phase.SERVING, phase is not None, healthy)

    # -- one instance

    def _step(self, each: Scaled, may_move: bool, now: Seconds) -> None:
        facts = Facts(
            wanted=each.wanted,
            seen=each.sight.seen,
            may_move=may_move,
            empty=self._empty(each, now),
            done=each.done,
            problem=each.problem,
        )
        before = each.life
        each.life, act = step(before, facts, each.patience, now)
        if each.life is before:
            return
        each.done, each.problem = None, ""
        self._account(each, before, now)
        self._show(each, now)
        if act is not None:
            each.work = self._task(self._work(each, act))
        self.wake()

    def _empty(self, each: Scaled, now: Seconds) -> bool:
        """Nobody has a request there: not we, not other replicas, nor, by its own count, anybody else."""
        member, since = each.member, each.life.since
        name, status = member.law.name, member.status
        if member.open or self._elsewhere(name) or now - since < QUIET_FOR:
            return False
        if member.endpoint.engine is Engine.OPENAI:
            return True
        counted = status.gauges.running is not None and status.gauges_at > since
        return counted and not status.gauges.running and not status.gauges.waiting

    def _show(self, each: Scaled, now: Seconds) -> None:
        """Tell the gate and the log where it stands now."""
        life, status = each.life, each.member.status
        status.comes_back = life.phase in COMES_BACK
        status.fenced = f"{life.phase.value} by plan" if life.fenced else ""
        level = logging.ERROR if life.phase is Phase.FAILED else logging.INFO
        extra = {"instance": each.member.law.name, "phase": life.phase.value, "problem": life.problem}
        log.log(level, "instance given up" if life.phase is Phase.FAILED else "instance phase", extra=extra)
        each.member.refresh(now)
        self._changed()

    def _account(self, each: Scaled, before: Life, now: Seconds) -> None:
        """Time and joules of transitions."""
        if each.life.phase in (Phase.STOPPING, Phase.STARTING):
            each.began = now, each.member.tally.joules
        elif each.began is not None and each.life.phase in (Phase.STOPPED, Phase.SERVING):
            (began, joules), each.began = each.began, None
            failed = each.life.failures > before.failures or before.failed is Act.STOP
            way = "stop" if before.phase is Phase.STOPPING or before.failed is Act.STOP else "start"
            spent = each.member.tally.joules - joules
            self.transitions.add(
                Transition(
                    each.member.law.name,
                    way,
                    "failed" if failed else "done",
                    now - began,
                    Joules(spent) if spent > 0.0 else None,
                    now,
                    each.life.problem if failed else "",
                )
            )

    async def _work(self, each: Scaled, act: Act) -> None:
        """Do what the table asked for; how it ended is heard by the next tick."""
        limit = {Act.STOP: each.limits.stop, Act.START: each.limits.start, Act.CHECK: CHECK_WITHIN}[act]
        try:
            async with asyncio.timeout(limit):
                await _DOES[act](self, each)
        except ActuationFailed as error:
            each.done, each.problem = False, str(error)
        except TimeoutError:
            why = f": {each.sight.why}" if each.sight.why else ""
            each.done, each.problem = False, f"no {TITLES[act]} within {limit:g} s{why}"
        except Exception as error:
            log.exception("an actuator failed", extra={"instance": each.member.law.name, "act": act.value})
            each.done, each.problem = False, f"{type(error).__name__}: {error}"
        else:
            each.done = True
        self.wake()

    async def _stop(self, each: Scaled) -> None:
        with contextlib.suppress(ActuationFailed):
            each.known = await answer(each.client, each.member.endpoint)
        await each.actuator.stop()
        await self._until(each, Seen.STOPPED)

    async def _start(self, each: Scaled) -> None:
        await each.actuator.start()
        await self._until(each, Seen.RUNNING)

    async def _check(self, each: Scaled) -> None:
        """Awake engines have been seen to answer garbage: the first token must be what it was before."""
        said = await answer(each.client, each.member.endpoint)
        if each.known is not None and said != each.known:
            raise ActuationFailed(f"it answers {said!r:.40} where it said {each.known!r:.40} before")
        each.member.status.answered(Seconds(self._clock()))

    async def _until(self, each: Scaled, seen: Seen) -> None:
        pause = POLL
        while True:
            await self._look(each)
            if each.sight.seen is seen:
                return
            await asyncio.sleep(pause)
            pause = min(POLL_MOST, 1.5 * pause)

    def _is_due(self, each: Scaled, now: Seconds) -> bool:
        busy = any(task is not None and not task.done() for task in (each.work, each.looking))
        every = LOOK_FIRST if each.life.phase is Phase.UNSEEN else LOOK_EVERY
        return not busy and now - each.looked >= every

    async def _look(self, each: Scaled) -> None:
        sight = await each.actuator.look()
        each.looked = Seconds(self._clock())
        if sight != each.sight:
            each.sight = sight
            self.wake()

    def _let_go(self) -> None:
        """We lead no more, or end: what is under way is dropped, and what was fenced is not ours to fence."""
        if not self._led:
            return
        self._led = False
        self._share.phases = {}
        for each in self.scaled.values():
            for task in (each.work, each.looking):
                if task is not None:
                    task.cancel()
            each.life, each.work, each.looking, each.done, each.began = Life(), None, None, None, None
            each.sight = NOT_SEEN
            each.member.status.fenced, each.member.status.comes_back = "", False
        self.targets.clear()


_DOES = {Act.STOP: Scaler._stop, Act.START: Scaler._start, Act.CHECK: Scaler._check}
