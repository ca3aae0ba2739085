"""Pure: the books of a request, from its size to what was learned from it.

Sizes are guesses until the engine reports usage: input tokens from characters, tokens from SSE events. Both
ratios are learned per model. Of a request that does not stream nothing is seen between dispatch and end; its
progress is estimated from the time (`estimate`), so that batch and contexts are not understated.
"""

from collections import deque

from control.projection import Load, Pace
from control.state import Flight
from joulegate.domain import LengthPrediction, LengthQuery
from joulegate.units import Joules, Seconds
from router.fleet import BUSY_PAUSE, Signal
from router.pools import Expected, Fleet, Member, Model, Pool, RequestRecord, Trip
from router.ports import Ending, RelayRequest, Report
from router.tally import Tally

MAX_LESSONS = 100  # outcomes kept until the next tick: at 1,000 a second the latest say as much as all
SIGNALS = {
    Ending.OK: Signal.REQUEST_SUCCEEDED,
    Ending.CLIENT_ERROR: Signal.REQUEST_SUCCEEDED,
    Ending.KEY_REFUSED: Signal.REQUEST_SUCCEEDED,
    Ending.NO_MODEL: Signal.REQUEST_SUCCEEDED,
    Ending.UPSTREAM_ERROR: Signal.REQUEST_FAILED,
    Ending.UPSTREAM_DOWN: Signal.REQUEST_FAILED,
    Ending.TIMEOUT: Signal.REQUEST_FAILED,
}


class Accounts:
    """What is written down about requests. Every method is part of a request's path."""

    def __init__(self, fleet: Fleet, tally: Tally) -> None:
        self._fleet = fleet
        self._tally = tally
        self._lessons: deque[tuple[Model, LengthQuery, LengthPrediction, int]] = deque(maxlen=MAX_LESSONS)

    def sized(self, request: RelayRequest, model: Model) -> tuple[LengthQuery, int]:
        """The query with its input tokens, and how many of them a prefix cache is expected to hold."""
        query = request.query
        tokens = query.input_tokens or max(1, round(request.input_chars / model.chars_per_token.value))
        if model.longest is not None:
            # an engine refuses a longer prompt unread: no cache need be free for it
            tokens = min(tokens, model.longest * query.n)
        cap = query.max_tokens if model.use_max_tokens else None
        sized = LengthQuery(  # not dataclasses.replace: six times the time
            model.name,
            query.key,
            tokens,
            cap,
            query.n,
            query.system_hash,
            query.parent,
            query.has_tools,
            query.json_mode,
            query.stop,
            query.text_head,
            query.text_tail,
            query.turn,
        )
        if not request.session or model.cache_yield.value < 0.05:
            return sized, 0
        prefix = max(member.sessions.get(request.session, 0) for member in model.members.values())
        return sized, min(tokens - 1, int(prefix * model.cache_yield.value))

    def granted(self, trip: Trip, member: Member, reason: str, now: Seconds) -> None:
        """The request has a place: remember what is expected of it."""
        flight, law = trip.flight, member.law
        member.trips[flight.id] = trip
        member.energy.sent(flight.id, flight.uncached_tokens)
        if not trip.stream:
            member.blind[flight.id] = flight
        if law.pool != trip.pool.name:
            trip.pool.tally.spilled += 1
        waited = now - flight.arrived
        trip.queued = now - trip.entered
        trip.pool.tally.queue.add(trip.queued)
        ttft, tpot = _expected(member, waited)
        trip.record = RequestRecord(
            id=trip.request_id,
            model=trip.model.name,
            type=flight.type.name,
            pool=trip.pool.name,
            instance=law.name,
            reason=reason,
            arrived=flight.arrived,
            input_tokens=flight.input_tokens,
            predicted_output=(flight.output_q50, flight.output_q90),
            predicted_ttft=ttft,
            predicted_tpot=tpot,
            clock=law.clock,
            queued=waited,
        )
        self._fleet.requests.append(trip.record)

    def progressed(self, trip: Trip, member: Member, events: int, now: Seconds) -> bool:
        """Output arrived. True if it was the first; what follows is booked once a tick (`estimate`)."""
        flight = trip.flight
        first = flight.first_token is None
        if first:
            trip.pool.tally.ttft.add(now - flight.arrived)
            member.speed.window.prompts.append(flight.uncached_tokens)
            trip.last = trip.booked = now
            _advance(member, flight, events * trip.model.tokens_per_event.value, now)
        elif trip.last is not None and events:
            trip.pool.tally.itl.add((now - trip.last) / events, events)
            trip.unbooked += events
            trip.last = now
        return first

    def sent(self, trip: Trip, now: Seconds) -> None:
        """The request's last byte left: the time since its arrival, less the queue, is our own cost."""
        self._tally.overhead.add(max(0.0, now - trip.flight.arrived - trip.queued))

    def closed(self, trip: Trip | None, member: Member, report: Report, now: Seconds) -> None:
        """The request is over. Everything that is learned is learned from here."""
        if report.ending is Ending.UPSTREAM_BUSY:
            member.status.busy_until = Seconds(now + BUSY_PAUSE)
        elif (signal := SIGNALS.get(report.ending)) is not None:
            member.status.signal(signal, now, report.error)
        if report.ending is Ending.NO_MODEL:
            member.status.doubt()
        if trip is None:
            return
        flight = trip.flight
        book(member, trip)
        member.law.book.close(flight)
        member.blind.pop(flight.id, None)
        member.energy.close(flight.id)
        trip.pool.tally.outcome(report.ending)
        self._measured(trip, report, now)
        if report.ending is Ending.OK:
            self._learn(trip, member, report)

    def teach(self, most: int) -> int:
        """Pass up to `most` outcomes on to the predictors, the latest; how many. Not in a request's path."""
        done = 0
        while self._lessons and done < most:
            model, query, prediction, output = self._lessons.pop()
            model.predictor.observe(query, prediction, output)
            done += 1
        return done

    def _measured(self, trip: Trip, report: Report, now: Seconds) -> None:
        flight, tally = trip.flight, trip.pool.tally
        output = report.completion_tokens
        ttft = None if report.first_output is None else report.first_output - flight.arrived
        tpot = None
        if report.first_output is not None and report.last_output is not None and output and output > 1:
            tpot = (report.last_output - report.first_output) / (output - 1)
            tally.tpot.add(tpot)
        if trip.record is not None:
            record = trip.record
            record.outcome, record.ttft, record.tpot = report.ending, ttft, tpot
            record.output_tokens = output
            if ttft is not None and record.predicted_ttft is not None:
                self._tally.predicted("ttft", record.predicted_ttft, ttft)
            if tpot is not None and record.predicted_tpot is not None:
                self._tally.predicted("tpot", record.predicted_tpot, tpot)
        verdicts = self._verdicts(trip, report, ttft, tpot, now)
        for name, met in verdicts.items():
            tally.objective(name, met)
        if report.ending is Ending.OK and verdicts and trip.record is not None:
            governed = trip.pool.acts and trip.record.clock is not None
            if trip.pool.burn.add(all(verdicts.values()), governed, now):
                trip.pool.resting = True

    def _verdicts(
        self, trip: Trip, report: Report, ttft: float | None, tpot: float | None, now: Seconds
    ) -> dict[str, bool]:
        """Which objectives applied, and whether they were met. A request that failed missed them."""
        if report.ending in (Ending.CLIENT_ERROR, Ending.CLIENT_LEFT, Ending.RESTEERED):
            return {}
        if report.ending is not Ending.OK:
            return {"ttft": False, "tpot": False}
        flight = trip.flight
        found: dict[str, bool] = {}
        if ttft is not None:
            found["ttft"] = ttft <= self._ttft_of(trip, report)
        if tpot is not None:
            found["tpot"] = tpot <= flight.tpot
        if flight.e2e is not None:
            found["e2e"] = now - flight.arrived <= flight.e2e
        return found

    def _ttft_of(self, trip: Trip, report: Report) -> float:
        """The objective that counts: that of the true input size, or what the request itself asked for."""
        promised = trip.pool.rules.objectives.ttft
        if trip.flight.ttft != promised[trip.flight.type.input] or report.prompt_tokens is None:
            return trip.flight.ttft
        return promised[trip.model.cuts.input_size(report.prompt_tokens - (report.cached_tokens or 0))]

    def _learn(self, trip: Trip, member: Member, report: Report) -> None:
        model, flight, tally = trip.model, trip.flight, trip.pool.tally
        prompt, output, cached = report.prompt_tokens, report.completion_tokens, report.cached_tokens
        if prompt:
            if trip.input_chars:
                model.chars_per_token.add(trip.input_chars / prompt)
            tally.prompt_tokens += prompt
        if cached is not None:
            tally.cached_tokens += cached
            self._learn_cache(trip, member, cached)
        if output is None:
            return
        tally.completion_tokens += output
        if trip.stream and report.events:
            model.tokens_per_event.add(output / report.events)
        per_choice = max(1, output // max(1, trip.query.n))
        self._lessons.append((model, trip.query, trip.prediction, per_choice))
        if flight.output_q50 > 0 and output > 0:
            self._tally.predicted("output_tokens", flight.output_q50, output)
        if flight.session and prompt:
            member.remember(flight.session, prompt + output)

    def _learn_cache(self, trip: Trip, member: Member, cached: int) -> None:
        prefix = member.sessions.get(trip.flight.session, 0) if trip.flight.session else 0
        if prefix:
            trip.model.cache_yield.add(min(1.0, cached / prefix))


def estimate(member: Member, now: Seconds) -> None:
    """Progress of every request: what was seen of it; where nothing is, by the time since dispatch."""
    law = member.law
    for trip in member.trips.values():
        book(member, trip)
    if not member.blind or law.model is None:
        return
    pace = _pace(member)
    prefill = pace.prompts(law.book.queued_tokens)
    each = max(pace.step / law.tokens_per_step, 1e-4)
    for flight in member.blind.values():
        if flight.dispatched is None:
            continue
        since = now - flight.dispatched
        tokens = (since - (prefill if flight.first_token is None else _prefilled(flight))) / each
        cap = flight.max_tokens if flight.max_tokens is not None else float("inf")
        new = min(tokens, cap) - flight.tokens_out
        if new >= 1.0:
            _advance(member, flight, new, now)


def book(member: Member, trip: Trip) -> None:
    """Book what came out of `trip` since it was booked last."""
    if not trip.unbooked or trip.last is None or trip.booked is None:
        return
    window = member.speed.window
    window.gaps += trip.last - trip.booked
    window.events += trip.unbooked
    _advance(member, trip.flight, trip.unbooked * trip.model.tokens_per_event.value, trip.last)
    trip.unbooked, trip.booked = 0, trip.last


def _advance(member: Member, flight: Flight, tokens: float, now: Seconds) -> None:
    """`tokens` more came out of `flight`: the laws' book and the energy book say so."""
    prompt = flight.uncached_tokens if flight.first_token is None else 0
    member.energy.worked(flight.id, prompt, tokens)
    member.holdback.did(prompt, tokens)
    member.law.book.progress(flight, tokens, now)


def metered(member: Member, joules: Joules, tally: Tally) -> None:
    """The GPUs' counters rose by `joules`: share them out."""
    for name, share, part in member.energy.settle(joules, member.law.model, member.batch(), member.law.clock):
        trip = member.trips.get(name)
        if trip is None:
            continue
        trip.pool.tally.joules += part
        key = trip.query.key
        tally.key_joules[key] = tally.key_joules.get(key, 0.0) + part
        if trip.record is not None:
            trip.record.joules = share.joules
        if share.closed:
            del member.trips[name]


def unmetered(member: Member) -> None:
    """Nobody reads its GPUs' counters now: what has ended gets no joules, and is not kept for them."""
    member.energy.watts = None
    for name in member.energy.forget_closed():
        member.trips.pop(name, None)


def _prefilled(flight: Flight) -> float:
    if flight.first_token is None or flight.dispatched is None:
        return 0.0
    return flight.first_token - flight.dispatched


def expect(member: Member) -> None:
    """Work out once a tick what requests sent until the next one may expect of this instance."""
    law = member.law
    if law.model is None:
        member.expected = None
        return
    pace, chunk = _pace(member), law.limits.chunk_budget
    step = pace.of(max(1, law.book.running), law.book.context)
    member.expected = Expected(step, pace.iteration(chunk) / chunk, pace.iteration(0.0))


def _expected(member: Member, waited: float) -> tuple[float | None, float | None]:
    """TTFT (from arrival) and TPOT expected, with the request in the book; None: no model."""
    expected = member.expected
    if expected is None:
        return None, None
    prompts = expected.iteration + expected.per_token * member.law.book.queued_tokens
    return waited + 0.5 * expected.step + prompts, expected.step / member.law.tokens_per_step


def _pace(member: Member) -> Pace:
    law = member.law
    assert law.model is not None
    book = law.book
    load = Load(book.decoding, max(0.0, book.context), book.queued_tokens, law.limits.chunk_budget)
    clock = law.clock if law.clock is not None else law.model.clocks[-1]
    return Pace(law.model, load, clock, law.correction)


def attainment(pool: Pool) -> dict[str, float]:
    """Share of requests that met each objective, since the start."""
    return {name: pool.tally.met.get(name, 0) / asked for name, asked in pool.tally.asked.items() if asked}
