"""Shell: proves instance -> GPU before clocks are set: asks an idle instance for a few tokens and looks at
the energy counters of its node's GPUs.

One instance of a node at a time. The window in which one is asked is the idle window of the next, so a node
of eight takes about four seconds. What was proven before this gateway started holds on, while everything is
as it was (`router.proof_file`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from math import inf

import orjson

from control.mapping import Proof, Standing, judge
from joulegate.units import Seconds, Watts
from router.agents import Agent
from router.fleet import Health
from router.http_client import ControlClient, Unreachable
from router.pools import Member
from router.ports import Engine
from router.proof_file import ProofFile

log = logging.getLogger(__name__)
WINDOW = 0.35  # seconds; energy counters move every 20 to 100 ms
RAMP = 0.1  # seconds from asking to a GPU that works
PAUSE = 0.25  # seconds between two rounds
QUICK_TRIES = 3  # in a row; after that once in
AGAIN = 30.0  # seconds
SAY_AFTER = 60.0  # seconds that an instance is due and never idle
TOKENS = 256  # asked for; the request is dropped when the window is over
PROMPT = "1 2 3 4 5 6 7 8 9 10 11 12"
PATH = "/v1/completions"


class Prover:
    """The instances of one node. `askers`: a client for each; `needed`: whether its clocks will be set."""

    def __init__(
        self,
        agent: Agent,
        members: Sequence[Member],
        askers: Mapping[str, ControlClient],
        needed: Callable[[Member], bool],
        kept: ProofFile,
        clock: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._members = members
        self._askers = askers
        self._needed = needed
        self._kept = kept
        self._clock = clock
        self._due_since: dict[str, float] = {}  # by instance; infinity once it was said

    async def run(self) -> None:
        while True:
            for member in self._members:
                if member.status.health is Health.DOWN and member.proof.state is not Standing.UNPROVEN:
                    member.proof = Proof(why="it was down, and may run elsewhere now")
                    self._kept.forget(member)
                self._recall(member)
                self._say_that_it_waits(member)
            if any(self._due(member) for member in self._members):
                await self.round()
            await asyncio.sleep(PAUSE)

    async def round(self) -> None:
        """Try every instance that is due and idle."""
        idle = self._idle()
        before = await self._watts()
        for member in self._members:
            idle &= self._idle()
            if member.law.name not in idle or not self._due(member):
                continue
            during = await self._worked(member)
            now = Seconds(self._clock())
            if before is not None and during is not None:
                busy = [m.gpus for m in self._members if m.law.name not in idle & self._idle()]
                others = frozenset(gpu for gpus in busy for gpu in gpus) - set(member.gpus)
                member.proof = judge(frozenset(member.gpus), before, during, others, member.proof, now)
                self._say(member)
                if member.proven:
                    self._kept.keep(member, self._agent.view.gpus)
            before, idle = during, self._idle()

    def _recall(self, member: Member) -> None:
        """A proof from before this gateway started."""
        untried = member.proof.tries == 0 and self._due(member)
        if untried and self._kept.holds(member, self._agent.view.gpus):
            why = "seen before this gateway started; the same processes are on the same GPUs"
            member.proof = Proof(Standing.PROVEN, why, Seconds(self._clock()))
            self._say(member)

    def _say_that_it_waits(self, member: Member) -> None:
        """Once: under steady traffic its clocks stay at default, and nothing else would tell."""
        name, now = member.law.name, self._clock()
        if member.proof.tries or not self._due(member):
            self._due_since.pop(name, None)
        elif now - self._due_since.setdefault(name, now) >= SAY_AFTER:
            self._due_since[name] = inf
            self._say(member)

    def _due(self, member: Member) -> bool:
        proof = member.proof
        if proof.state is Standing.PROVEN or not self._agent.view.up or not self._needed(member):
            return False
        usable = member.status.health is Health.UP and not (
            member.status.draining or member.status.asleep or member.status.misfit
        )
        return usable and (proof.tries < QUICK_TRIES or self._clock() - proof.at >= AGAIN)

    def _idle(self) -> set[str]:
        """Instances that have nothing to do, as far as we see."""
        return {m.law.name for m in self._members if not m.open and not (m.status.gauges.running or 0)}

    async def _worked(self, member: Member) -> Mapping[str, Watts] | None:
        """Mean watts while the instance was made to work; None: it did not, or the agent did not answer."""
        work = asyncio.create_task(self._ask(member))
        try:
            await asyncio.sleep(RAMP)
            watts = await self._watts()
            if work.done() and (refusal := work.result()):
                self._unable(member, refusal)
                return None
            return watts
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    async def _ask(self, member: Member) -> str:
        """A few tokens. What was wrong, if anything."""
        endpoint = member.endpoint
        body = {"model": endpoint.model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        if endpoint.engine is Engine.VLLM:
            body["ignore_eos"] = True
        try:
            reply = await self._askers[member.law.name].post(PATH, orjson.dumps(body), 10.0)
        except Unreachable as error:
            return str(error)
        return "" if reply.status == 200 else f"{PATH} answered {reply.status}"

    def _unable(self, member: Member, why: str) -> None:
        now, tries = Seconds(self._clock()), member.proof.tries + 1
        member.proof = Proof(Standing.UNPROVEN, f"could not be made to work: {why}", now, tries)
        self._say(member)

    async def _watts(self) -> Mapping[str, Watts] | None:
        """Mean watts of the node's GPUs over a window, by their counters."""
        first = await self._counters()
        await asyncio.sleep(WINDOW)
        second = await self._counters()
        watts = {}
        for gpu in first.keys() & second.keys():
            seconds = second[gpu][0] - first[gpu][0]
            if seconds > 0.0:
                watts[gpu] = Watts((second[gpu][1] - first[gpu][1]) / seconds)
        return watts or None

    async def _counters(self) -> dict[str, tuple[float, float]]:
        """(agent's time, joules) by GPU; {} if the agent does not answer."""
        view = self._agent.view
        await self._agent.discover(Seconds(self._clock()))
        if not view.up:
            return {}
        return {uuid: (gpu.observed_at_s, gpu.energy_j) for uuid, gpu in view.gpus.items()}

    def _say(self, member: Member) -> None:
        proof = member.proof
        level = logging.INFO if proof.state is Standing.PROVEN else logging.WARNING
        extra = {"instance": member.law.name, "state": proof.state.value, "why": proof.why}
        log.log(level, "GPU mapping", extra=extra)
