"""Shell: takes back what an instance was sent and does not begin to answer, as `control.emergency` says.

What is taken back ends before its first byte, so the relay asks another instance as after a failure
(docs/decisions/0033): within the pool's retry budget, and once.
"""

import asyncio
import logging

from control.emergency import Relief, Rung, relieve
from joulegate.units import Seconds
from router.errors import Resteered, Squashed, UpstreamError
from router.fleet import Health, Signal
from router.gate import FleetGate
from router.pools import Member, Model, Pool
from router.ticket import Ticket

STUCK = "no first token long after it was due"
log = logging.getLogger(__name__)


class Rescue:
    """Looks at what waits for a first token, once a tick."""

    def __init__(self, gate: FleetGate) -> None:
        self._gate = gate

    def tick(self, now: Seconds) -> None:
        if not self._gate.unanswered:
            return
        for model in self._gate.fleet.unique():
            for member in model.members.values():
                if member.status.is_dead:
                    self._abandon(member)
                elif (member.law.book.prompts or member.blind) and member.law.pool in model.pools:
                    self._relieve(model, model.pools[member.law.pool], member, now)

    def _abandon(self, member: Member) -> None:
        """It does not even say that it lives: nothing is waited for that it has not begun."""
        for flight in list(member.law.book.flights.values()):
            if not flight.avoid:
                self._take_back(Relief(flight, Rung.RESTEER, stuck=True))

    def _relieve(self, model: Model, pool: Pool, member: Member, now: Seconds) -> None:
        tiers = model.steering.places[pool.name]
        others = [law for tier in tiers for law in tier.instances if law is not member.law]
        status, blind = member.status, member.blind.values()
        for relief in relieve(member.law, others, pool.rules.shed, now, blind, status.idle_at):
            if relief.stuck and relief.rung is Rung.RESTEER and status.health is Health.UP:
                status.signal(Signal.REQUEST_FAILED, now, STUCK)  # asked last from now on, not dead
                member.refresh(now)
            self._take_back(relief)

    def _take_back(self, relief: Relief) -> None:
        ticket = self._gate.unanswered.get(relief.flight.id)
        # else it is on its way to the instance, has been answered, or was taken back before
        if ticket is not None and ticket.recall is not None:
            # in a round of its own: whoever is taken back goes on within the call
            asyncio.get_running_loop().call_soon(self._recall, ticket, relief)

    def _recall(self, ticket: Ticket, relief: Relief) -> None:
        """If it still waits (its connection may serve another request by now) and may go elsewhere."""
        recall = ticket.recall
        if self._gate.unanswered.get(relief.flight.id) is not ticket or recall is None:
            return
        if relief.rung is Rung.RESTEER and not self._gate.may_move(ticket):
            return
        log.info(
            "taken back",
            extra={"request": ticket.request.id, "instance": ticket.endpoint.name, "rung": relief.rung.value},
        )
        ticket.recall = None  # once
        recall(_error(relief, ticket))


def _error(relief: Relief, ticket: Ticket) -> UpstreamError:
    name = ticket.endpoint.name
    if relief.rung is Rung.SQUASH:
        return Squashed(f"{name} could not answer in time, and others wait")
    return Resteered(f"{name} could not answer in time, and no other instance had a place")
