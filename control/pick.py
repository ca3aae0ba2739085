"""Pure: which instance gets a request: filter, score, pick.

Theory of operation. Among the instances that can serve the request, the *fullest* one that still meets
every objective with it added and whose clock need not rise takes it: a full batch is cheaper per token, and
an instance left empty can sleep. If none takes it without a rise, one that still keeps its objectives at
maximum clock does, the emptiest first. The governor leaves the headroom (`Room`) with each decision, so a
candidate costs a few comparisons and no model call. Of the candidates two are drawn and the better one
taken: several gateways with the same snapshot then do not all choose the same instance. `share` is 1/R of
the headroom for one of R gateways.

Where prompts often fill whole iterations and sequences are few (`apart`, `control.steering` says when), those
that meet all without a rise are looked at one by one, and the one where the request makes the fewest pauses
takes it (`pauses`); of equal ones the fullest. A full iteration is a pause of every stream that decodes
beside it, and what keeps pauses short is a higher clock. So long answers gather where long prompts seldom
come, and an instance left to long prompts has nobody to stop and reads them at the slowest clock.

An instance that failed its last request, or whose GPUs are near a thermal or power limit, gets one only if
no other has room.

A session stays where its prefix is cached while that instance keeps its objectives: a lost prefix costs
more energy than a better-fitting batch saves (reference: control laws).

Missing input: limits that are not known do not bind. An instance on which nothing was decided yet has no
`Room`, so it gets a request only where no other has any, the least loaded first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from control.state import FILLED_MEMORY, Flight, Instance, Room

Rng = Callable[[int], int]  # n -> integer in [0, n)


@dataclass(slots=True)  # not frozen: made for every request
class Pick:
    instance: Instance
    reason: str


def pick(
    flight: Flight, candidates: Sequence[Instance], rng: Rng, share: float = 1.0, apart: bool = False
) -> Pick | None:
    """One of `candidates` (already able to serve the model); None: no free slot anywhere.

    apart: long answers are kept from where long prompts are read.
    """
    if not apart and not flight.session and (lucky := drawn(flight, candidates, rng, share)) is not None:
        return Pick(lucky, "no rise")
    able = _able(flight, candidates)
    calm: list[Instance] = []
    fast: list[Instance] = []
    tokens = flight.uncached_tokens
    for instance in able:
        if within(instance, instance.at_clock, tokens, share):
            calm.append(instance)
        elif within(instance, instance.at_max, tokens, share):
            fast.append(instance)
    if not able:
        return None
    if flight.session and (home := _home(flight.session, (*calm, *fast))) is not None:
        return Pick(home, "session")
    if calm and apart:
        return Pick(min(calm, key=lambda instance: pauses(flight, instance)), "no rise")
    if calm:
        return Pick(_of_two(calm, rng, fullest=True), "no rise")
    if fast:
        return Pick(_of_two(fast, rng, fullest=False), "rise")
    return Pick(_of_two(able, rng, fullest=False), "least loaded")


def _able(flight: Flight, candidates: Sequence[Instance]) -> Sequence[Instance]:
    """Those it fits; the doubtful ones only where there is no other."""
    sound: list[Instance] = []
    doubtful: list[Instance] = []
    for instance in candidates:
        if fits(flight, instance):
            (doubtful if instance.suspect or instance.limited else sound).append(instance)
    return sound or doubtful


def fits(flight: Flight, instance: Instance) -> bool:
    """A free slot, and room in KV and context length (unknown limits do not bind)."""
    book, limits = instance.book, instance.limits
    if not instance.ready or len(book.flights) >= instance.slots or instance.name == flight.avoid:
        return False
    if limits.max_model_len is not None and flight.input_tokens >= limits.max_model_len:
        return False
    if limits.kv_capacity is None or not book.flights:
        return True
    return book.held + flight.input_tokens + flight.output_q50 <= limits.kv_capacity


def within(instance: Instance, room: Room, tokens: float, share: float) -> bool:
    """Whether a request with so many prompt tokens stays inside `share` of the room."""
    book = instance.book
    running, queued = len(book.flights), book.queued_tokens
    if share >= 1.0:
        return running < room.decoding and queued + tokens <= room.prompt_tokens
    return share * (room.decoding - running) >= 1.0 and tokens <= share * (room.prompt_tokens - queued)


def _home(session: str, able: Sequence[Instance]) -> Instance | None:
    """Where most of the session's prefix is cached."""
    homes = [i for i in able if session in i.sessions]
    return max(homes, key=lambda i: i.sessions[session]) if homes else None


def drawn(flight: Flight, candidates: Sequence[Instance], rng: Rng, share: float) -> Instance | None:
    """The better of two drawn from all, if both would have been among those drawn from.

    Given that, every such pair is as likely as if the others had been left out first; and two are looked at.
    """
    if len(candidates) < 2:
        return None
    pair = candidates[rng(len(candidates))], candidates[rng(len(candidates))]
    tokens = flight.uncached_tokens
    for instance in pair:
        if instance.suspect or instance.limited or not fits(flight, instance):
            return None
        if not within(instance, instance.at_clock, tokens, share):
            return None
    return _better(*pair, fullest=True)


def pauses(flight: Flight, instance: Instance) -> tuple[float, float]:
    """Pauses of a whole iteration, in sequences, that sending it there makes; of equal ones the fullest.

    It stops whoever decodes there while its own prompt fills iterations, and is stopped by prompts that come
    while it stays, as often as they have been coming: it stays no longer than its TPOT objective allows.
    """
    own = flight.uncached_tokens // instance.limits.chunk_budget * len(instance.book.flights)
    stay = flight.output_q50 * flight.tpot
    return own + stay * instance.filled.total(flight.arrived) / FILLED_MEMORY, -_load(instance)


def _of_two(candidates: Sequence[Instance], rng: Rng, fullest: bool) -> Instance:
    if len(candidates) == 1:
        return candidates[0]
    return _better(candidates[rng(len(candidates))], candidates[rng(len(candidates))], fullest)


def _better(first: Instance, second: Instance, fullest: bool) -> Instance:
    if fullest:
        return second if _load(second) > _load(first) else first
    return second if _load(second) < _load(first) else first


def _load(instance: Instance) -> float:
    """Sequences, prompts waiting weighed as the work they are (400 prompt tokens ~ one sequence)."""
    book = instance.book
    return (len(book.flights) + book.queued_tokens / 400.0) / instance.tp
