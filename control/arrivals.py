"""Pure: what has been arriving: rate, tokens, and how many prompt tokens land in one control window.

Theory of operation. Raising happens when a request arrives, so the harm a slow clock can do is bounded by
the work that lands before the raise acts: one control window. The p-quantile of uncached prompt tokens per
window over the last 100 s is that work; p is learned (control.headroom). Means are over the same horizon,
exponentially weighted where a law needs a trend instead of a distribution.
"""

from bisect import bisect_left, insort
from collections import deque
from math import exp

from joulegate.units import Seconds


class Arrivals:
    """Incremental; `add` is O(1), closing a window O(log n)."""

    def __init__(self, window: Seconds = Seconds(0.25), horizon: Seconds = Seconds(100.0)) -> None:
        self._window = window
        self._keep = max(1, round(horizon / window))
        self._closed: deque[float] = deque()
        self._sorted: list[float] = []
        self._end: float | None = None
        self._tokens = 0.0
        self._rate = Smoothed(Seconds(15.0))
        self._input = Smoothed(Seconds(60.0))
        self._output = Smoothed(Seconds(60.0))

    def add(self, uncached_tokens: float, expected_output: float, now: Seconds) -> None:
        """A request arrived. `expected_output` is its predicted mean length, in tokens."""
        self.roll(now)
        self._tokens += uncached_tokens
        self._rate.add(1.0, now)
        self._input.add(uncached_tokens, now)
        self._output.add(expected_output, now)

    def roll(self, now: Seconds) -> None:
        """Close the windows that have ended by `now`."""
        if self._end is None:
            self._end = now + self._window
        silent = 0
        while now >= self._end and silent <= self._keep:
            self._close(self._tokens)
            self._tokens = 0.0
            self._end += self._window
            silent += 1
        if now >= self._end:  # silent for longer than the horizon
            self._end = now + self._window

    def quantile(self, p: float) -> float:
        """Uncached prompt tokens in one window: the p-quantile; p > 1 scales the largest."""
        if not self._sorted:
            return 0.0
        if p > 1.0:
            return self._sorted[-1] * p
        return self._sorted[min(len(self._sorted) - 1, int(p * len(self._sorted)))]

    def rate(self, now: Seconds) -> float:
        """Requests per second."""
        return self._rate.per_second(now)

    def means(self, now: Seconds) -> tuple[float, float]:
        """Mean uncached input and expected output tokens of a request (0, 0: nothing seen)."""
        count = self._output.weight(now)
        if count <= 0.0:
            return 0.0, 0.0
        return self._input.total(now) / count, self._output.total(now) / count

    def _close(self, tokens: float) -> None:
        self._closed.append(tokens)
        insort(self._sorted, tokens)
        if len(self._closed) > self._keep:
            old = self._closed.popleft()
            del self._sorted[bisect_left(self._sorted, old)]


class Smoothed:
    """Exponentially weighted sum and count with time constant `tau`; unbiased while young."""

    def __init__(self, tau: Seconds) -> None:
        self._tau = tau
        self._sum = 0.0
        self._count = 0.0
        self._at: float | None = None
        self._start = 0.0

    def add(self, value: float, now: Seconds) -> None:
        self._decay(now)
        self._sum += value
        self._count += 1.0

    def total(self, now: Seconds) -> float:
        self._decay(now)
        return self._sum

    def weight(self, now: Seconds) -> float:
        self._decay(now)
        return self._count

    def per_second(self, now: Seconds) -> float:
        """Sum per second, corrected for the time before the first value."""
        self._decay(now)
        if self._at is None:
            return 0.0
        seen = 1.0 - exp(-max(now - self._start, 1.0) / self._tau)
        return self._sum / (self._tau * seen)

    def _decay(self, now: float) -> None:
        if self._at is None:
            self._at = self._start = now
            return
        if now > self._at:
            factor = exp(-(now - self._at) / self._tau)
            self._sum *= factor
            self._count *= factor
            self._at = now
