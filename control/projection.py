"""Pure: what the work on an engine will take: prompts queued, decode steps, KV to come.

Theory of operation (papers §2.3, §10.2). throttLL'eM projects iteration by iteration; from outside the
engine only requests are visible, so this projects in *events*. Between two expected completions the batch
is constant and the contexts grow by one token per sequence and step, so each stretch has a closed form and
a projection costs O(requests), not O(iterations).

Prompts: an engine fills an iteration with up to C prompt tokens, in order. So a prompt that ends in the
j-th iteration gets its first token when that iteration does, whatever else shares it; only the count of
iterations and the earliest deadline in each matter (`Dues`).

Missing input: a length that has been outrun is guessed anew (`Flight.remaining`), capacity goes by q90 and
then by the request's own cap; requests of others are not in the scoreboard, and the governor scales the
batch up by the engine's own gauge. Beside the simulated engine (`scripts/bench projection`), lengths known:
batch 0.00 %, peak of KV 0.09 %, time to drain 0.30 % off, or 4 % too long in SEGMENTS stretches; lengths
predicted: 17, 2.8 and 17 % (throttLL'eM, lengths known: batch 0.19 %, KV 2.26 %).

Two KV figures (reference: control laws): the contexts *read* per step decide latency (`LoadBook.context`),
the tokens *held* decide capacity (`peak_kv`).

Speculation factor: an engine that decodes speculatively gives a sequence `per_step` tokens a step on average
(`Instance.tokens_per_step`), so ends are that much fewer steps away; contexts grow as fast as tokens come.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from control.state import Flight, LoadBook, PeerPrompts
from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz, Seconds

SEGMENTS = 6  # stretches in which a batch is taken to drain; fewer are quicker and over-state it (6: by 5 %)


@dataclass(slots=True)  # not frozen, like what else is made for every decision
class Load:
    """The batch an engine works on, and its prompts."""

    decoding: float
    context: float  # tokens read per step
    prompt_tokens: float  # uncached prompt tokens queued, engine and gateway
    chunk: int  # prompt tokens of one iteration


class Pace:
    """Iteration times of one load at one clock. Seconds; `factor` is the learned correction."""

    __slots__ = ("_batch", "_clock", "_factor", "_full", "_load", "_model", "step")

    def __init__(self, model: EngineModel, load: Load, clock: MegaHertz, factor: float = 1.0) -> None:
        self._model = model
        self._load = load
        self._clock = clock
        self._factor = factor
        self._full = -1.0
        self._batch = Batch(int(load.decoding + 0.999), load.context)
        self.step: float = model.iteration_time(self._batch, clock) * factor if load.decoding >= 1 else 0.0

    def iteration(self, prompt_tokens: float) -> float:
        """One iteration of this batch with so many prompt tokens (at most a chunk)."""
        batch, tokens = self._batch, int(prompt_tokens)
        batch.prefill_tokens, batch.prefill_attention = tokens, 0.5 * tokens * tokens
        return self._model.iteration_time(batch, self._clock) * self._factor

    @property
    def full(self) -> float:
        """One iteration with a whole chunk of prompt tokens."""
        if self._full < 0.0:
            self._full = self.iteration(self._load.chunk)
        return self._full

    def of(self, decoding: float, context: float) -> float:
        """One decode step of another batch at this clock."""
        return self._model.iteration_time(Batch(int(decoding + 0.999), context), self._clock) * self._factor

    @property
    def queued(self) -> float:
        """Until all prompts of the load are prefilled."""
        return self.prompts(self._load.prompt_tokens)

    def prompts(self, tokens: float) -> float:
        """Until the last of so many queued prompt tokens is prefilled."""
        if tokens <= 0.0:
            return 0.0
        chunk = self._load.chunk
        whole = int(tokens // chunk)
        rest = tokens - whole * chunk
        time = self.iteration(rest) if rest > 0.0 else 0.0
        return time + whole * self.full if whole else time


@dataclass(slots=True)
class Dues:
    """When the prompts of each coming iteration are due.

    `by[j]`: earliest deadline among the prompts that end in iteration j (0 first); inf where none ends.
    """

    by: tuple[float, ...]
    tokens: float

    def met(self, pace: Pace, chunk: int, start: float, guard: float) -> bool:
        """Every first token in time, if the first iteration begins at `start`. guard: 1 + model error."""
        last = len(self.by) - 1
        if last < 0:
            return True
        full = pace.full * guard if last else 0.0
        for j in range(last):
            if start + (j + 1) * full > self.by[j]:
                return False
        rest = self.tokens - last * chunk
        return start + last * full + pace.iteration(rest) * guard <= self.by[last]


def dues(prompts: Iterable[Flight | PeerPrompts], chunk: int) -> Dues:
    """`prompts` in the order the engine will take them. Lost ones take time but are due at no time."""
    by: list[float] = []
    tokens = 0.0
    for flight in prompts:
        tokens += max(1, flight.uncached_tokens)
        j = int((tokens - 1) // chunk)
        while len(by) <= j:
            by.append(float("inf"))
        if not flight.lost and flight.deadline < by[j]:
            by[j] = flight.deadline
    return Dues(tuple(by), tokens)


def peak_kv(book: LoadBook) -> float:
    """Most tokens the KV cache will hold if nothing more arrives, lengths taken at q90 (papers §2.3).

    Between completions KV grows by one token per sequence and step; a completion frees the whole sequence.
    The peak is just before one of the completions.
    """
    if not book.flights:
        return 0.0
    ends = sorted((f.remaining_high, f.input_tokens + f.tokens_out) for f in book.flights.values())
    alive = len(ends)
    held = book.held
    peak = held
    steps = 0.0
    for remaining, now_held in ends:
        held += alive * (remaining - steps)
        steps = remaining
        peak = max(peak, held)
        held -= now_held + remaining
        alive -= 1
    return peak


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps during which the batch is taken as constant."""

    steps: float
    decoding: int
    context: float
    ends: tuple[tuple[float, float], ...]  # (steps of the stretch until a request ends, when that is due)


def drain(book: LoadBook, segments: int = SEGMENTS, per_step: float = 1.0) -> tuple[Stretch, ...]:
    """How the sequences in flight will end, in at most `segments` stretches of constant batch.

    The batch of a stretch is as large to its end as at its start, so it is never under-stated. per_step:
    tokens that a sequence gets in one step (speculative decoding).
    """
    flights = sorted(((f.remaining / per_step, f) for f in book.flights.values()), key=lambda one: one[0])
    alive = len(flights)
    if not alive:
        return ()
    context = sum(f.input_tokens + f.tokens_out for _, f in flights)
    size = -(-alive // segments)
    stretches: list[Stretch] = []
    done = 0.0
    for first in range(0, alive, size):
        group = flights[first : first + size]
        end = group[-1][0]
        ends = tuple((left - done, f.arrived + f.e2e) for left, f in group if f.e2e is not None)
        left = alive - first
        steps = end - done
        more = left * steps * per_step
        stretches.append(Stretch(steps, left, context + 0.5 * more, ends))
        context += more - sum(f.input_tokens + f.tokens_out + end * per_step for _, f in group)
        done = end
    return tuple(stretches)


def within_reach(
    book: LoadBook, fastest: Pace, start: float, share: float, per_step: float = 1.0
) -> tuple[Stretch, ...]:
    """How they will end, less what is late at any clock: a higher one is not worth it for that.

    Of the other ends those that bind: one that is due no sooner than a later one is kept with it. Queued
    prompts are read from `start` on, then decoding begins; `share` of the time goes to prompts of others.
    """
    kept: list[Stretch] = []
    at = start + fastest.queued
    for stretch in drain(book, SEGMENTS, per_step):
        step = _step(stretch, fastest, share)
        soonest, ends = float("inf"), list[tuple[float, float]]()
        for steps, due in reversed(stretch.ends):
            if at + steps * step <= due < soonest:
                soonest = due
                ends.append((steps, due))
        kept.append(replace(stretch, ends=tuple(ends)))
        at += stretch.steps * step
    return tuple(kept)


def ends_met(stretches: tuple[Stretch, ...], pace: Pace, start: float, guard: float, share: float) -> bool:
    """Whether all those ends are in time at this pace. guard: 1 + model error."""
    if not stretches:
        return True
    at = start + pace.queued
    for stretch in stretches:
        step = _step(stretch, pace, share) * guard
        for steps, due in stretch.ends:
            if at + steps * step > due:
                return False
        at += stretch.steps * step
    return True


def _step(stretch: Stretch, pace: Pace, share: float) -> float:
    return pace.of(stretch.decoding, max(0.0, stretch.context)) / (1.0 - share)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Prompts of more than one iteration are queued: every iteration is full, for all who decode.

    `iterations`: so many of them a short answer sees from its first token on, what has passed of the crowd
    included. Answers end sooner than one knows, so it is the short ones whose TPOT counts.
    """

    since: Seconds
    iterations: float
    short: float  # output tokens that nearly every answer exceeds; 0: not known

    def met(self, pace: Pace, tpot: Seconds, guard: float) -> bool:
        """Whether a short answer that decodes through it keeps its TPOT."""
        full = pace.full * guard
        if full <= tpot:
            return True
        return self.iterations * full + (self.short - self.iterations) * pace.step <= tpot * self.short


def crowd(load: Load, short: float, since: Seconds | None, pace: Pace, now: Seconds) -> Crowd | None:
    """None: one iteration takes all prompts. `pace`: at the clock in force; `since`: begin, None: now."""
    queued = load.prompt_tokens / load.chunk
    if queued <= 1.0:
        return None
    since = now if since is None else since
    return Crowd(since, min(short, (now - since) / pace.full + queued), short)
