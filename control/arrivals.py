"""Pure: what has been arriving: rate and mean lengths.

Exponentially weighted: the rate over the last 15 s, so that clocks follow the load; lengths over the last
minute. Missing input: before anything came there are no means (0, 0) and no age, and `control.steering` asks
for no floor. Silence needs no news: the rate fades by itself.
"""

from math import exp

from joulegate.units import Seconds

RATE_MEMORY = Seconds(15.0)
LENGTH_MEMORY = Seconds(60.0)


class Arrivals:
    """Incremental; O(1)."""

    __slots__ = ("_at", "_chunks", "_count", "_input", "_output", "_recent", "_start")

    def __init__(self) -> None:
        self._recent = self._count = self._input = self._output = self._chunks = 0.0
        self._at = self._start = -1.0

    def add(
        self, uncached_tokens: float, expected_output: float, now: Seconds, full_chunks: float = 0.0
    ) -> None:
        """A request arrived: predicted output tokens, and how many iterations its prompt fills."""
        if self._at < 0.0:
            self._at = self._start = now  # by the first request, not by whoever asks before it
        self._decay(now)
        self._recent += 1.0
        self._count += 1.0
        self._input += uncached_tokens
        self._output += expected_output
        self._chunks += full_chunks

    def full_chunks(self, now: Seconds) -> float:
        """Iterations per second that prompts fill to the chunk budget."""
        self._decay(now)
        return self.rate(now) * self._chunks / self._count if self._count > 0.0 else 0.0

    def age(self, now: Seconds) -> float:
        """Seconds since the first request; 0 before it."""
        return max(0.0, now - self._start) if self._at >= 0.0 else 0.0

    def rate(self, now: Seconds) -> float:
        """Requests per second; corrected for the time before the first."""
        self._decay(now)
        seen = 1.0 - exp(-max(now - self._start, 1.0) / RATE_MEMORY)
        return self._recent / (RATE_MEMORY * seen)

    def means(self, now: Seconds) -> tuple[float, float]:
        """Mean uncached input and expected output tokens of a request (0, 0: nothing seen)."""
        self._decay(now)
        if self._count <= 0.0:
            return 0.0, 0.0
        return self._input / self._count, self._output / self._count

    def _decay(self, now: float) -> None:
        if self._at < 0.0:
            return
        passed = now - self._at
        if passed > 0.0:
            self._at = now
            self._recent *= exp(-passed / RATE_MEMORY)
            factor = exp(-passed / LENGTH_MEMORY)
            self._count *= factor
            self._input *= factor
            self._output *= factor
            self._chunks *= factor


class Fading:
    """A sum that fades with time constant `memory`."""

    __slots__ = ("_at", "_memory", "_sum")

    def __init__(self, memory: Seconds) -> None:
        self._memory = memory
        self._sum = 0.0
        self._at = 0.0

    def add(self, value: float, now: Seconds) -> None:
        self._sum = self.total(now) + value
        self._at = max(self._at, now)

    def total(self, now: Seconds) -> float:
        return self._sum * exp(-max(0.0, now - self._at) / self._memory)
