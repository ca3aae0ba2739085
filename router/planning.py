"""Shell: plans how many instances run: learns the load, asks a child process once an epoch, sets targets.

Each part of an epoch what arrived is counted; each epoch the forecast learns it and is asked for the peak of
the next; `control.plan_child` answers how many instances that takes. In between, a load that is there and
needs more than planned is enough reason for more (`router.capacity`). Fewer run only after fewer have been
enough for a while. Before the first plan, and where no plan can be made, what runs goes on.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from control.plan_wire import encoded, provision_in
from control.provision import Provision, Question
from control.turnout import Calm
from joulegate.units import Seconds
from predictor.forecast import LoadForecast
from router.capacity import desired_replicas
from router.child import PIPE, running
from router.elastic import arrange
from router.gate import FleetGate
from router.load_meter import PARTS
from router.plan_question import TYPES, length_bias, question_for
from router.pools import Fleet, Model, Pool
from router.scaler import Scaler

log = logging.getLogger(__name__)
PERIOD = 1.0  # seconds between two looks at what is needed
PATIENCE = 120.0  # seconds for a child of low priority on a busy machine
MONDAY = 4 * 86_400  # seconds from 1970-01-01 to the first Monday
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
    calm: dict[str, Calm] = field(default_factory=dict)  # by pool


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
        if not self._leads():
            return
        peak = planned.forecast.forecast(Seconds(start)) * self._replicas()
        planned.peak = float(peak[:, 0].sum())
        began = self._clock()
        rates = dict(zip(TYPES, peak.tolist(), strict=True))
        question = question_for(model, rates, self._bias(model), self._least, self._scaler, self.rules)
        try:
            planned.plan = await ask(question, self._child)
            planned.problem = ""
        except PlanFailed as error:
            planned.problem = str(error)
            log.error("no new plan", extra={"model": model.name, "problem": planned.problem})
        else:
            log.info("plan", extra={"model": model.name, "counts": dict(planned.plan.counts)})
            if self.rules.elastic and self.rules.mode == "enforce" and self._leads():
                self._arrange(model, planned.plan)
        planned.at, planned.seconds = Seconds(self._clock()), self._clock() - began

    def _arrange(self, model: Model, plan: Provision) -> None:
        """Pools as the plan has them. What runs in each by then counts as asked for: none stops at once."""
        now = Seconds(self._clock())
        if arrange(model, plan, self._gate, now):
            log.info("pools", extra={"model": model.name, "merged": dict(plan.merged)})
            for pool in model.pools.values():
                up = sum(member.law.ready for member in pool.members)
                self._calm(model, pool).settle(up, now)

    def _aim(self, model: Model, pool: Pool) -> None:
        """How many should run now; the scaler is told, where there is one."""
        planned, now = self.models[model.name], Seconds(self._clock())
        laws = [member.law for member in pool.members]
        up = sum(law.ready for law in laws)
        busy = len(pool.queue) > 0 or any(law.book.running for law in laws)
        present = desired_replicas(laws, len(pool.queue)) if busy else 0
        asked = up if planned.plan is None else planned.plan.counts.get(pool.name, up)
        count = self._calm(model, pool).settle(max(asked, present, self._least(model, pool)), now)
        pool.desired = min(count, len(pool.members))
        if self.rules.mode == "enforce" and self._leads():
            self._scaler.targets[model.name, pool.name] = pool.desired

    def _calm(self, model: Model, pool: Pool) -> Calm:
        return self.models[model.name].calm.setdefault(pool.name, Calm(self.rules.calm))

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
