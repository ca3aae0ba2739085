"""Pure: the same requests on an engine that stays at maximum clock: what would have happened anyway.

Theory of operation. "Was this miss our doing?" and "how much slower are we?" need the world in which clocks
were never lowered. The twin is one engine of the same model at its highest clock, first come first served,
fed with the requests that ended (their true lengths are known then), in order of arrival. It works in
stretches like `control.projection`: with prompts waiting it runs one iteration with a chunk of them,
otherwise all steps until the next completion or arrival at once. About six model calls a request. A prompt
waits while there is no room for it in the KV cache, as in the engine: batches larger than any engine's would
miss TPOT in every long queue, and excuse our misses there.

Missing input: a request that never ended, or ended after others that arrived later were fed, is not seen
(`control.steering` waits a while for it), so the twin is then a little less busy than the engine was. What
others sent to the engine is not seen at all: the twin is too quick, and more misses count as ours. Without a
known capacity its cache holds everything. It pre-empts nobody. An engine that decodes speculatively gives a
sequence `per_step` tokens a step, on average: so do all of the twin's.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, inf

from control.state import Flight
from joulegate.domain import Batch, EngineModel
from joulegate.units import Seconds


@dataclass(slots=True)  # not frozen: made for every request
class Twinned:
    """One request in the twin; seconds from its arrival."""

    flight: Flight
    ttft: Seconds
    e2e: Seconds


@dataclass(slots=True, eq=False)
class _Prompt:
    flight: Flight
    tokens: int
    done: int = 0


# (last step, serial, first token at, tokens a step, flight)
_Decoding = tuple[int, int, float, float, Flight]


class Twin:
    """Feed with `add` in order of arrival; what has ended by then comes out."""

    def __init__(self, model: EngineModel, chunk: int, slots: int, capacity: float = inf) -> None:
        self.model = model  # whoever knows better of the same engine puts it here, and in the three below
        self.slots = slots
        self.capacity = capacity  # tokens of KV that prompts may fill
        self.per_step = 1.0  # tokens of one sequence
        self._clock = model.clocks[-1]
        self._chunk = chunk
        self._time = 0.0
        self._step = 0
        self._context = 0.0
        self._growth = 0.0  # of the context in one step
        self._read = 0.0  # tokens of prompts begun, whose first token is not out
        self._serial = 0
        self._prompts: deque[_Prompt] = deque()
        self._decoding: list[_Decoding] = []
        self._ended: list[Twinned] = []

    def add(self, flight: Flight) -> list[Twinned]:
        """`flight` has ended, so its output length is known. Runs the twin up to its arrival."""
        self._run(flight.arrived)
        self._prompts.append(_Prompt(flight, max(1, flight.uncached_tokens)))
        ended, self._ended = self._ended, []
        return ended

    def _run(self, until: float) -> None:
        while self._time < until:
            if self._prompts and len(self._decoding) < self.slots and self._fits(self._prompts[0]):
                self._iterate()
            elif self._decoding:
                self._stretch(until)
            else:
                self._time = until

    def _fits(self, prompt: _Prompt) -> bool:
        """Whether it is in the KV cache in part, or has room there."""
        held = self._context + self._read
        return prompt.done > 0 or held <= 0.0 or held + prompt.flight.input_tokens <= self.capacity

    def _iterate(self) -> None:
        """One iteration with as many prompt tokens as fit."""
        left = self._chunk - len(self._decoding)
        tokens, attention = 0, 0.0
        first: list[Flight] = []
        while self._prompts and left > 0 and self._fits(self._prompts[0]):
            head = self._prompts[0]
            if not head.done:
                self._read += head.flight.input_tokens
            take = min(left, head.tokens - head.done)
            attention += take * (head.done + 0.5 * take)
            head.done += take
            tokens += take
            left -= take
            if head.done < head.tokens:
                break
            first.append(self._prompts.popleft().flight)
        batch = Batch(len(self._decoding), self._context, tokens, attention)
        self._time += self.model.iteration_time(batch, self._clock)
        self._count(1)
        for flight in first:
            self._read -= flight.input_tokens
            self._begin(flight)

    def _stretch(self, until: float) -> None:
        """Decode steps until the next completion, or until the iteration in which `until` lies."""
        batch = len(self._decoding)
        steps = max(1, self._decoding[0][0] - self._step)
        load = Batch(batch, self._context + 0.5 * self._growth * steps)
        step_time = self.model.iteration_time(load, self._clock)
        steps = max(1, min(steps, ceil((until - self._time) / step_time)))
        self._time += steps * step_time
        self._count(steps)

    def _begin(self, flight: Flight) -> None:
        more = max(1, round(flight.tokens_out)) - 1
        if not more:
            self._end(flight, self._time)
            return
        self._serial += 1
        self._context += flight.input_tokens + 1
        steps = ceil(more / self.per_step)
        growth = more / steps
        self._growth += growth
        heappush(self._decoding, (self._step + steps, self._serial, self._time, growth, flight))

    def _count(self, steps: int) -> None:
        self._step += steps
        self._context += steps * self._growth
        while self._decoding and self._decoding[0][0] <= self._step:
            _, _, first, growth, flight = heappop(self._decoding)
            self._growth -= growth
            self._context -= flight.input_tokens + max(1, round(flight.tokens_out))
            self._end(flight, first)
        if not self._decoding:  # no drift of floats survives an empty engine
            self._growth = self._context = 0.0

    def _end(self, flight: Flight, first: float) -> None:
        ttft, e2e = Seconds(first - flight.arrived), Seconds(self._time - flight.arrived)
        self._ended.append(Twinned(flight, ttft, e2e))
