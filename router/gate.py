"""Shell: who is served where, and when: the queue in front of the engines.

`admit` turns a request into a flight and hands it to `control.steering`, which grants, queues or refuses and
is synchronous and therefore atomic. Every event that could let somebody in runs it again: an arrival, a
first token, a completion, a cancelled wait, a change of health, the tick.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from control.admission import Outcome
from control.classify import classify, pool_for
from control.pick import Rng
from control.state import Flight
from joulegate.units import Seconds
from router.accounts import Accounts, book
from router.deaths import Deaths
from router.errors import GatewayBusy, GatewayError, NoSuchModel, PoolDown, RateLimited, Shed
from router.pools import Fleet, Member, Model, Pool, Trip
from router.ports import Ending, ModelCard, RelayRequest, Report
from router.rate_limits import RateLimits
from router.responses import Makers
from router.ticket import Ticket

LEAST_WAIT = 0.002  # seconds until the queue is looked at again by itself
MAX_RETRIES = 10.0  # a pool's retry budget never holds more


class FleetGate:
    """`Gate` over a fleet. `wake` asks the control tick to run now: load has stepped up."""

    def __init__(
        self,
        fleet: Fleet,
        accounts: Accounts,
        limits: RateLimits,
        makers: Makers,
        retry_budget: float,
        rng: Rng,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.fleet = fleet
        self.limits = limits
        self._accounts = accounts
        self._retry_budget = retry_budget
        self._rng = rng
        self.clock = clock
        self._wake = wake
        self._serial = 0
        self._waiting: dict[str, Ticket] = {}  # by flight
        self.deaths = Deaths()
        self._makers = makers
        self._timers: dict[str, asyncio.TimerHandle] = {}  # by model
        self.unanswered: dict[str, Ticket] = {}  # sent, no output yet; by flight

    def admit(self, request: RelayRequest) -> "Admission":
        return Admission(self, request)

    def again(self, slot: object, report: Report) -> "Admission | None":
        if not isinstance(slot, Ticket) or slot.member is None:
            return None
        request, failed, now = slot.request, slot.member.law.name, self._now()
        trip = slot.trip
        model = trip.model if trip else self._model(request)
        pool = trip.pool if trip else model.pools[slot.member.law.pool]
        if not self._repeats(request, model, pool, now):
            return None
        if not (self._alive(model, pool, now, failed) if trip else _able(model, request, failed, now)):
            return None
        pool.retries -= 1.0
        pool.tally.retried += 1
        return Admission(self, request, failed)

    def may_move(self, ticket: Ticket) -> bool:
        """Whether another instance may be asked, should this one not begin to answer."""
        trip, member, now = ticket.trip, ticket.member, self._now()
        if trip is None or member is None or not self._repeats(ticket.request, trip.model, trip.pool, now):
            return False
        return self._alive(trip.model, trip.pool, now, member.law.name)

    def _repeats(self, request: RelayRequest, model: Model, pool: Pool, now: Seconds) -> bool:
        if pool.retries < 1.0 or self.deaths.suspects(request.fingerprint, now):
            return False
        return self._maker(request, model) is None  # else no other could answer it

    def models(self) -> Sequence[ModelCard]:
        return [ModelCard(name, max_model_len=m.longest) for name, m in sorted(self.fleet.models.items())]

    def enter(self, request: RelayRequest, avoid: str = "") -> Ticket:
        """A ticket, granted or waiting. Raises GatewayError where the request is refused at once.

        `avoid`: the instance that failed the request before.
        """
        if self.fleet.draining:
            raise GatewayBusy("this gateway is shutting down", retry_after=1.0)
        now = self._now()
        if self.deaths.condemned(request.fingerprint, now):
            raise PoolDown("this request took two instances down; it is not sent again now", retry_after=60.0)
        model = self._model(request)
        if not request.generative:
            return self._enter_plain(request, model, now, avoid)
        trip = self._trip(request, model)
        trip.flight.avoid = avoid
        pool = trip.pool
        self._earn(pool)
        ticket = Ticket(self, request, trip)
        if (maker := self._maker(request, model)) is not None:
            self._go_on(ticket, trip, maker, now)
            return ticket
        if not self._alive(model, pool, now, avoid):
            raise _pool_down(model, pool, now)
        self._waiting[trip.flight.id] = ticket
        self._deliver(model, model.steering.arrive(trip.flight, pool.name, now))
        if ticket.member is None:
            self._wake()  # it waits: a higher clock may let it in sooner
        if len(pool.queue) > pool.queue_limit and pool.queue.remove(trip.flight):
            del self._waiting[trip.flight.id]
            raise self._refusal(f"{len(pool.queue)} requests are queued", 1.0, pool)
        return ticket  # granted, refused or waiting

    def leave(self, ticket: Ticket) -> None:
        """The client went away while it waited."""
        if ticket.trip is not None and self._waiting.pop(ticket.trip.flight.id, None) is not None:
            ticket.trip.pool.queue.remove(ticket.trip.flight)
            ticket.trip.pool.tally.outcome(Ending.CLIENT_LEFT)
        ticket.close(Report(Ending.CLIENT_LEFT, 0))  # in case the grant came in the same moment

    def run(self, model: Model) -> None:
        """Grant and refuse whatever the present allows."""
        if model.steering.queued:
            self._deliver(model, model.steering.assign(self._now()))

    def changed(self, now: Seconds) -> None:
        """Health changed somewhere, or time passed: let in who can go, tell who has nowhere to go."""
        for _, _, member in self.fleet.members():
            member.refresh(now)
        for model in self.fleet.unique():
            self.run(model)
        for ticket in list(self._waiting.values()):
            trip = ticket.trip
            if trip is not None and not self._alive(trip.model, trip.pool, now, trip.flight.avoid):
                del self._waiting[trip.flight.id]
                trip.pool.queue.remove(trip.flight)
                ticket.refuse(_pool_down(trip.model, trip.pool, now))

    def rehome(self, guest: Pool, host: Pool) -> None:
        """What waits in `guest` waits in `host` from now on: they are one pool."""
        for ticket in self._waiting.values():
            if ticket.trip is not None and ticket.trip.pool is guest:
                guest.queue.remove(ticket.trip.flight)
                host.queue.push(ticket.trip.flight, ticket.trip.model.steering.admission)
                ticket.trip.pool = host

    def sent(self, ticket: Ticket, now: Seconds) -> None:
        """The request is on its way to the instance."""
        if ticket.trip is not None:
            self._accounts.sent(ticket.trip, now)
            self.unanswered[ticket.trip.flight.id] = ticket

    def progressed(self, ticket: Ticket, events: int, now: Seconds) -> None:
        """Output arrived for `ticket`."""
        trip, member = ticket.trip, ticket.member
        if trip is None or member is None:
            return
        if self._accounts.progressed(trip, member, events, now):
            self.unanswered.pop(trip.flight.id, None)
            self.run(trip.model)  # a prompt is done: there is room for the next

    def made(self, ticket: Ticket, response: str) -> None:
        """The instance answers `ticket` with this response, and keeps it."""
        if ticket.member is not None:
            self._makers.made(response, ticket.member.law.name)

    def joules(self, ticket: Ticket) -> float | None:
        """What the request took so far; None: nobody meters its instance."""
        trip, member = ticket.trip, ticket.member
        if trip is None or member is None:
            return None
        law = member.law
        book(member, trip)
        return member.energy.so_far(trip.flight.id, law.model, member.batch(), law.clock, self._now())

    def closed(self, ticket: Ticket, report: Report) -> None:
        """The one exit of a granted ticket."""
        now, member = self._now(), ticket.member
        if member is None:
            return
        member.open -= 1
        self._accounts.closed(ticket.trip, member, report, now)
        if report.ending is Ending.OK:
            self.deaths.answered(ticket.request.fingerprint)
        elif report.ending is Ending.UPSTREAM_DOWN and ticket.was_sent:
            self.deaths.add(ticket.request.fingerprint, member.law.name, now)
        member.refresh(now)
        if ticket.trip is not None:
            self.unanswered.pop(ticket.trip.flight.id, None)
            self.run(ticket.trip.model)

    def _look_again(self, model: Model) -> None:
        """An engine will need prompts before anything is heard of it: look at the queue then."""
        if not model.steering.queued or model.name in self._timers:
            return
        now = self._now()
        wait = max(LEAST_WAIT, model.steering.next_look(now) - now)
        self._timers[model.name] = asyncio.get_running_loop().call_later(wait, self._looked, model)

    def _looked(self, model: Model) -> None:
        del self._timers[model.name]
        self.run(model)

    def _deliver(self, model: Model, outcome: Outcome) -> None:
        for grant in outcome.grants:
            member = model.members[grant.instance.name]
            ticket = self._waiting.pop(grant.flight.id, None)
            if ticket is None:
                raise RuntimeError("a request was granted that nobody waits for")
            self._granted(ticket, member, grant.reason)
        for reject in outcome.rejects:
            ticket = self._waiting.pop(reject.flight.id, None)
            if ticket is not None and ticket.trip is not None:
                ticket.refuse(self._refusal(reject.reason, reject.retry_after, ticket.trip.pool))
        self._look_again(model)

    def _granted(self, ticket: Ticket, member: Member, reason: str) -> None:
        now = self._now()
        member.open += 1
        member.refresh(now)
        if ticket.trip is not None:
            self._accounts.granted(ticket.trip, member, reason, now)
        ticket.grant(member)
        if ticket.trip is not None and ticket.trip.model.steering.exceeded(member.law):
            self._wake()

    def _trip(self, request: RelayRequest, model: Model) -> Trip:
        query, cached = self._accounts.sized(request, model)
        prediction = model.predictor.predict(query)
        uncached = max(1, query.input_tokens - cached)
        kind = classify(uncached, prediction, model.cuts)
        model.load.add(kind, uncached, prediction.q50)
        rules = pool_for(kind, model.rules)
        if rules is None:  # the settings see to it that every type has a pool
            raise PoolDown(f"no pool of {model.name} takes {kind.name}")
        objectives = rules.objectives
        cap = query.max_tokens
        self._serial += 1
        flight = Flight(
            id=str(self._serial),  # a client's own request id need not be unique
            type=kind,
            input_tokens=query.input_tokens,
            uncached_tokens=uncached,
            output_q50=prediction.q50,
            output_q90=prediction.q90,
            arrived=request.arrived,
            ttft=request.ttft if request.ttft is not None else objectives.ttft[kind.input],
            tpot=request.tpot if request.tpot is not None else objectives.tpot,
            e2e=objectives.e2e,
            max_tokens=None if cap is None else float(cap * query.n),
            tenant=request.caller.name,
            session=request.session,
        )
        chars = 0 if request.query.input_tokens else request.input_chars
        pool = model.pools[rules.name]
        return Trip(model, pool, flight, query, prediction, request.id, request.stream, chars, self._now())

    def _go_on(self, ticket: Ticket, trip: Trip, maker: Member, now: Seconds) -> None:
        """From a response that only `maker` knows: it need not queue for others, nor can it wait for them."""
        outcome = trip.model.steering.send(trip.flight, trip.pool.name, maker.law, now)
        if not outcome.grants:
            why = maker.status.why_not(now) or "full"
            raise PoolDown(f"only {maker.law.name} knows the response to go on from ({why})", retry_after=1.0)
        self._waiting[trip.flight.id] = ticket
        self._deliver(trip.model, outcome)

    def _maker(self, request: RelayRequest, model: Model) -> Member | None:
        """The instance that made the response `request` is about, if that is known."""
        return model.members.get(self._makers.of(request.response)) if request.response else None

    def _earn(self, pool: Pool) -> None:
        """A request came: its pool may repeat a share of one more."""
        pool.retries = min(MAX_RETRIES, pool.retries + self._retry_budget)

    def _enter_plain(self, request: RelayRequest, model: Model, now: Seconds, avoid: str) -> Ticket:
        """What produces no tokens is not queued: it goes to the instance with the fewest requests.

        What is about a response goes to its maker, in rotation or not: others would say that it is gone.
        """
        maker = self._maker(request, model)
        able = [maker] if maker is not None else _able(model, request, avoid, now)
        if not able:
            raise PoolDown(f"no instance of {model.name} can take this request now", retry_after=1.0)
        ticket = Ticket(self, request, None)
        member = min(able, key=lambda m: (m.open, self._rng(1 << 16)))
        self._earn(model.pools[member.law.pool])
        member.open += 1
        ticket.grant(member)
        return ticket

    def _model(self, request: RelayRequest) -> Model:
        wanted = request.query.model
        found = self.fleet.models.get(wanted)
        if found is None and not wanted:
            maker = self._makers.of(request.response)
            models = [m for m in self.fleet.unique() if maker in m.members] or list(self.fleet.unique())
            found = models[0] if len(models) == 1 else None
        if found is None:
            known = ", ".join(sorted(self.fleet.models))
            why = f"The model `{wanted[:200]}` does not exist" if wanted else "The request names no model"
            raise NoSuchModel(f"{why}. Known here: {known}", param="model")
        return found

    def _alive(self, model: Model, pool: Pool, now: Seconds, avoid: str) -> bool:
        """Whether an instance the pool may use, but `avoid`, is expected to take requests again by itself."""
        reach = pool.rules.reach
        for other in model.pools.values():
            larger = other.rules.reach
            if larger[0] >= reach[0] and larger[1] >= reach[1]:
                for member in other.members:
                    status = member.status
                    if member.law.name != avoid and (
                        status.may_take(0, now) or status.comes_back or now < status.busy_until
                    ):
                        return True
        return False

    def _refusal(self, reason: str, retry_after: float, pool: Pool) -> GatewayError:
        pool.tally.outcome(Ending.SHED)
        kind = RateLimited if pool.rules.shed else Shed
        return kind(reason, retry_after=retry_after)

    def _now(self) -> Seconds:
        return Seconds(self.clock())


class Admission:
    """`async with`: waits for a place, and gives it back however the block ends.

    `failed`: the instance where a first attempt failed; the key's limits have let the request in then.
    """

    __slots__ = ("_failed", "_gate", "_request", "_ticket")

    def __init__(self, gate: FleetGate, request: RelayRequest, failed: str = "") -> None:
        self._gate = gate
        self._request = request
        self._failed = failed
        self._ticket: Ticket | None = None

    async def __aenter__(self) -> Ticket:
        key, limits = self._request.caller.name, self._gate.limits
        if self._failed:
            limits.take_again(key)
        else:
            limits.take(key, Seconds(self._gate.clock()))
        try:
            ticket = self._ticket = self._gate.enter(self._request, self._failed)
            if ticket.member is None:
                await self._wait(ticket)
            return ticket
        except BaseException:
            limits.done(key, 0)
            raise

    async def _wait(self, ticket: Ticket) -> None:
        try:
            await ticket.granted()
        except asyncio.CancelledError:
            self._gate.leave(ticket)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticket is not None:
            ending = Ending.CLIENT_LEFT if kind is asyncio.CancelledError else Ending.UPSTREAM_ERROR
            self._ticket.close(Report(ending, 0, error=str(error or "")))
            self._gate.limits.done(self._request.caller.name, self._ticket.tokens)


def _able(model: Model, request: RelayRequest, avoid: str, now: Seconds) -> list[Member]:
    """Who may get a request that produces no tokens."""
    return [
        member
        for member in model.members.values()
        if member.status.may_take(member.open, now)
        and request.engine in (None, member.endpoint.engine)
        and member.law.name != avoid
    ]


def _pool_down(model: Model, pool: Pool, now: Seconds) -> PoolDown:
    why = "; ".join(f"{m.law.name} {m.status.why_not(now)}" for m in pool.members)
    return PoolDown(f"no instance of {model.name} can take this request now ({why})", retry_after=2.0)
