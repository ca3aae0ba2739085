"""Shell: plans how many instances run, and which pools share them.

How many is `control.sizing`, every few seconds, from the load that comes. Which pools share them, where they
may (`elastic`), is worked out once an epoch: what arrived is counted, the forecast learns it and is asked for
the peak of the next epoch, and `control.plan_child` answers. Where it cannot, pools stay as they are.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from control.floor import in_steps
from control.lifecycle import Phase
from control.plan_wire import encoded, provision_in
from control.planner import PlanRules
from control.provision import Provision, Question
from control.sizing import Seen, Sizing, Terms, length_bias
from joulegate.units import Seconds
from predictor.forecast import Floats, LoadForecast
from router.capacity import present
from router.child import PIPE, running
from router.elastic import arrange
from router.gate import FleetGate
from router.load_meter import PARTS
from router.plan_question import Coming, by_type, question_for, stock_of
from router.pools import Fleet, Model, Pool
from router.scaler import Scaler

log = logging.getLogger(__name__)
PERIOD = 1.0  # seconds between two looks at what is needed
PATIENCE = 120.0  # seconds for a child of low priority on a busy machine
MONDAY = 4 * 86_400  # seconds from 1970-01-01 to the first Monday
COMING = (Phase.STARTING, Phase.CHECKING)
CHILD = (sys.executable, "-m", "control.plan_child")


class PlanFailed(Exception):
    """Why there is no new plan."""


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """From the settings."""

    mode: str  # advise or enforce
    elastic: bool
    epoch: Seconds
    calm: Seconds
    cover: float  # ratio of epochs


@dataclass(slots=True, eq=False)
class Planned:
    """What is known and wanted of one model."""

    forecast: LoadForecast
    epochs: int = 0  # learned
    peak: float = 0.0  # requests per second, forecast
    plan: Provision | None = None
    at: Seconds = Seconds(float("-inf"))  # of the last plan
    seconds: float = 0.0  # that it took
    problem: str = ""  # why there is no newer one
    sizes: dict[str, Sizing] = field(default_factory=dict)  # by pool


class Planning:
    """`least`: instances of a pool that stay warm; `replicas`: how many gateways share the load."""

    def __init__(
        self,
        fleet: Fleet,
        rules: PlanTerms,
        least: Callable[[Model, Pool], int],
        scaler: Scaler,
        gate: FleetGate,
        leads: Callable[[], bool],
        replicas: Callable[[], int],
        clock: Callable[[], float],
        wall: Callable[[], float],
        child: tuple[str, ...] = CHILD,
    ) -> None:
        self.rules = rules
        self.models = {
            model.name: Planned(LoadForecast(rules.epoch, rules.cover)) for model in fleet.unique()
        }
        self._fleet = fleet
        self._least = least
        self._scaler = scaler
        self._gate = gate
        self._leads = leads
        self._replicas = replicas
        self._clock = clock
        self._wall = wall
        self._child = child
        self._part_from = clock()
        self._parts = 0
        self._learning: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(min(PERIOD, self.rules.epoch / PARTS))
                self.tick()
                await self._looks()
        finally:
            if self._learning is not None:
                self._learning.cancel()
                await asyncio.gather(self._learning, return_exceptions=True)

    def tick(self) -> None:
        """Count, at the end of an epoch learn and plan, and say how many should run now."""
        now = Seconds(self._clock())
        if now - self._part_from >= self.rules.epoch / PARTS:
            for model in self._fleet.unique():
                model.load.close_part(now - self._part_from)
            self._part_from, self._parts = now, self._parts + 1
            if self._parts % PARTS == 0 and (self._learning is None or self._learning.done()):
                self._learning = asyncio.create_task(self._epochs(), name="plan")
        for model, pool in self._fleet.pools():
            self._aim(model, pool)

    async def _looks(self) -> None:
        """At the load of every pool whose time has come."""
        for model, pool in list(self._fleet.pools()):
            if self.sizing(model, pool).due(Seconds(self._clock())):
                self._look(model, pool)
                await asyncio.sleep(0)  # a look is milliseconds of computing

    async def _epochs(self) -> None:
        """Each model's, one after the other. A model that cannot be planned does not keep the others."""
        for model in self._fleet.unique():
            try:
                await self._epoch(model)
            except Exception as error:
                self.models[model.name].problem = f"{type(error).__name__}: {error}"
                log.exception("a plan failed", extra={"model": model.name})

    async def _epoch(self, model: Model) -> None:
        planned, load = self.models[model.name], model.load.epoch()
        if load is None:
            return
        start = (self._wall() - MONDAY) // self.rules.epoch * self.rules.epoch
        planned.forecast.observe(Seconds(start - self.rules.epoch), load)
        planned.epochs += 1
        peak = planned.forecast.forecast(Seconds(start)) * self._replicas()
        mean = load.mean * self._replicas()
        planned.peak = float(peak[:, 0].sum())
        if self.rules.elastic and self._leads():
            await self._divide(model, planned, mean, peak)

    async def _divide(self, model: Model, planned: Planned, mean: Floats, peak: Floats) -> None:
        """Which pools share instances, by the child's answer."""
        began = self._clock()
        coming = Coming(by_type(mean), by_type(peak), self._bias(model), self.rules.epoch)
        question = question_for(model, coming, self._least, self._scaler)
        try:
            planned.plan = await ask(question, self._child)
            planned.problem = ""
        except PlanFailed as error:
            planned.problem = str(error)
            log.error("no new plan", extra={"model": model.name, "problem": planned.problem})
        else:
            log.info("plan", extra={"model": model.name, "counts": dict(planned.plan.counts)})
            if self.rules.mode == "enforce" and self._leads():
                self._arrange(model, planned.plan)
        planned.at, planned.seconds = Seconds(self._clock()), self._clock() - began

    def _arrange(self, model: Model, plan: Provision) -> None:
        """Pools as the plan has them. What runs in each by then counts as asked for: none stops at once."""
        now = Seconds(self._clock())
        before = {pool.name: pool.rules.types for pool in model.pools.values()}
        if arrange(model, plan, self._gate, now):
            log.info("pools", extra={"model": model.name, "merged": dict(plan.merged)})
            for pool in model.pools.values():
                up = sum(member.law.ready for member in pool.members)
                sizing = self.sizing(model, pool)
                if pool.rules.types != before[pool.name]:
                    sizing.restart(now)
                sizing.count(up, up, now)

    def _aim(self, model: Model, pool: Pool) -> None:
        """How many should run now; the scaler is told, where there is one."""
        sizing, now = self.sizing(model, pool), Seconds(self._clock())
        laws = [member.law for member in pool.members]
        needed = max(present(laws, len(pool.queue)), self._least(model, pool))
        pool.desired = min(sizing.count(self._up(pool), needed, now), len(pool.members))
        if self.rules.mode == "enforce" and self._leads():
            self._scaler.targets[model.name, pool.name] = pool.desired

    def _look(self, model: Model, pool: Pool) -> None:
        """The pool's load of this moment, with what other gateways get of it, against what it could run."""
        sizing, now = self.sizing(model, pool), Seconds(self._clock())
        state, stock = model.steering.pools[pool.name], stock_of(pool.members, self._scaler)
        if not stock:
            sizing.unknown(now)
            return
        per_step = min(member.law.tokens_per_step for member in pool.members)
        load = state.demand(now)
        if load is not None:
            load = in_steps(replace(load, rate=load.rate * self._replicas()), per_step)
        seen = Seen(load, Seconds(state.arrivals.age(now)), self._bias(model))
        rules = PlanRules(full_speed=pool.mode != "enforce")
        terms = Terms(Seconds(per_step * pool.rules.objectives.tpot), state.prices.price, rules)
        sizing.look(stock, seen, self._up(pool), terms, now)

    def _up(self, pool: Pool) -> int:
        """Instances that run or are on their way."""
        laws = (member.law for member in pool.members)
        return sum(law.ready or self._scaler.phase(law.name) in COMING for law in laws)

    def sizing(self, model: Model, pool: Pool) -> Sizing:
        """The law of that pool, with what it has learned."""
        sizes = self.models[model.name].sizes
        if pool.name not in sizes:
            sizes[pool.name] = Sizing(self.rules.calm)
        return sizes[pool.name]

    def _bias(self, model: Model) -> float:
        ended = [r for r in self._fleet.requests if r.model == model.name and r.output_tokens]
        return length_bias([(float(r.output_tokens or 0), r.predicted_output[0]) for r in ended])


async def ask(question: Question, child: tuple[str, ...] = CHILD) -> Provision:
    """A plan from a child process. Raises PlanFailed."""
    try:
        async with (
            running(child, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process,
            asyncio.timeout(PATIENCE),
        ):
            answer, said = await process.communicate(encoded(question))
    except TimeoutError as error:
        raise PlanFailed(f"not done after {PATIENCE:.0f} s") from error
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise PlanFailed(last or f"the child ended with {process.returncode}")
    try:
        return provision_in(answer)
    except (ValueError, KeyError, TypeError) as error:
        raise PlanFailed(f"an answer that is no plan: {error!r}") from error
