"""Pure: the last rungs of the ladder: what becomes of a request that was sent and is not answered in time.

Theory of operation (papers §1.9). A backlog that implies a miss is met in this order: near deadlines go first
and whoever cannot be in time goes last (`control.admission`); the clock rises to its maximum
(`control.governor`, Reason.OVERLOAD); then, here, a request of which not a byte has come is handed to another
instance that can still be in time, once; and one that is past its deadline and keeps others waiting is ended,
where the pool sheds. A pool that does not shed answers late rather than not at all.

When a first token is expected follows from the prompts ahead, which an engine reads in order, at maximum
clock, counted from when it began on the first of them. An engine that takes OVERDUE times as long, and SLACK
more, is stuck: nothing is expected of it any more. Of an answer that does not stream nothing is seen before
its end; it is due when its longest would have ended, the first token as late as was promised. Where neither
the request nor the context bounds it, its longest is FAR times as long as nine of ten are. And an engine that
says it has nothing to do, when the first token is long overdue, has lost it.
Missing input: without a model nothing is expected, and nothing is taken back.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from control.pick import fits, within
from control.projection import Load, Pace
from control.state import Flight, Instance, Room
from joulegate.units import MegaHertz, Seconds

OVERDUE = 3.0
SLACK = 0.5  # seconds
FAR = 10.0
NEVER = Seconds(float("-inf"))


class Rung(Enum):
    RESTEER = "re-steer"
    SQUASH = "squash"


@dataclass(frozen=True, slots=True)
class Relief:
    """What to do about one request. `stuck`: its instance does not move."""

    flight: Flight
    rung: Rung
    stuck: bool


def relieve(
    instance: Instance,
    others: Sequence[Instance],
    shed: bool,
    now: Seconds,
    unseen: Collection[Flight] = (),
    idle_at: Seconds = NEVER,
) -> list[Relief]:
    """Of the requests that `instance` was sent and has not begun to answer, those to take back.

    `others`: instances that may serve them instead. `shed`: the pool refuses whom it cannot serve in time.
    `unseen`: those that do not stream, which the book takes to be answered by the time that has passed.
    `idle_at`: when the engine was asked that said last that it has nothing to do.
    """
    book, model = instance.book, instance.model
    if model is None or not (others or shed):
        return []  # nothing is known, or nothing can be done
    top, prompts = model.clocks[-1], list(book.prompts.values())
    stuck = bool(prompts) and is_stuck(instance, prompts[0], now)
    found: list[Relief] = []
    taken = {other.name: (0, 0) for other in others}  # sequences and prompt tokens handed over just now
    for flight in unseen:
        late = flight.id not in book.prompts and _overdue(instance, flight, idle_at, now)
        if late and _hand_over(flight, others, taken, now, stuck=True):
            found.append(Relief(flight, Rung.RESTEER, stuck=True))
    ahead = 0
    for place, flight in enumerate(prompts):
        ahead += max(1, flight.uncached_tokens)
        if not stuck and book.served_at + _reading(instance, ahead, top) <= flight.deadline:
            continue
        if _hand_over(flight, others, taken, now, stuck):
            found.append(Relief(flight, Rung.RESTEER, stuck))
        elif shed and now > flight.deadline and (place or stuck) and _waited_for(prompts[place + 1 :]):
            found.append(Relief(flight, Rung.SQUASH, stuck))
    return found


def is_stuck(instance: Instance, head: Flight, now: Seconds) -> bool:
    """Whether reading its first prompt takes far longer than it should at the clock in force."""
    model = instance.model
    if model is None:
        return False
    clock = instance.clock if instance.clock is not None else model.clocks[-1]
    expected = _reading(instance, max(1, head.uncached_tokens), clock)
    return now - instance.book.served_at > OVERDUE * expected + SLACK


def _overdue(instance: Instance, flight: Flight, idle_at: Seconds, now: Seconds) -> bool:
    """Whether an answer that comes all at once takes far longer than its longest would, or was lost."""
    if flight.dispatched is None or flight.first_token is None:
        return False
    first = max(flight.ttft, flight.first_token - flight.dispatched)
    if idle_at - flight.dispatched > OVERDUE * first + SLACK:
        return True
    most, longest = flight.max_tokens, instance.limits.max_model_len
    if most is None:
        most = FAR * flight.output_q90 if longest is None else float(max(1, longest - flight.input_tokens))
    assert instance.model is not None
    book, clock = instance.book, instance.clock if instance.clock is not None else instance.model.clocks[-1]
    load = Load(max(1, book.decoding), max(0.0, book.context) + most, 0.0, instance.limits.chunk_budget)
    step = Pace(instance.model, load, clock, instance.factor(clock)).step
    return now - flight.dispatched > OVERDUE * (first + most * step) + SLACK


def _reading(instance: Instance, tokens: float, clock: MegaHertz) -> float:
    """Seconds for so many prompt tokens, beside what it decodes."""
    model, book = instance.model, instance.book
    assert model is not None
    load = Load(book.decoding, max(0.0, book.context), tokens, instance.limits.chunk_budget)
    return Pace(model, load, clock, instance.factor(clock)).prompts(tokens)


def _hand_over(
    flight: Flight,
    others: Sequence[Instance],
    taken: dict[str, tuple[int, int]],
    now: Seconds,
    stuck: bool,
) -> bool:
    """Hand `flight` to one that keeps all its own objectives with it added, and answers it in time.

    Nothing comes of a stuck one: what it holds may be late elsewhere, within a TTFT from now.
    """
    if flight.avoid:
        return False
    due = max(flight.deadline, now + flight.ttft) if stuck else flight.deadline
    for other in others:
        if other.model is None or other.suspect or other.limited or not fits(flight, other):
            continue
        sequences, tokens = taken[other.name]
        room = Room(other.at_max.decoding - sequences, other.at_max.prompt_tokens - tokens, other.at_max.at)
        queued = other.book.queued_tokens + tokens + flight.uncached_tokens
        in_time = now + (1.0 + other.model_error) * _reading(other, queued, other.model.clocks[-1]) <= due
        if in_time and within(other, room, flight.uncached_tokens, 1.0):
            taken[other.name] = sequences + 1, tokens + flight.uncached_tokens
            return True
    return False


def _waited_for(behind: Sequence[Flight]) -> bool:
    """Whether somebody who can still be in time is behind."""
    return any(not flight.lost for flight in behind)
