"""Pure: what arrived, by request type, in parts of an epoch: what the load forecast learns from."""

from collections import deque

import numpy as np

from joulegate.domain import RequestType
from predictor.forecast import SHAPE, EpochLoad, Floats

PARTS = 10  # of an epoch: the busiest of them is its peak
LATE = 3  # the last of them are its end


class LoadMeter:
    """Counts requests, uncached input and expected output tokens. `add` is part of a request's path."""

    __slots__ = ("_parts", "_rows")

    def __init__(self) -> None:
        self._rows = [[0.0, 0.0, 0.0] for _ in range(SHAPE[0])]
        self._parts: deque[Floats] = deque(maxlen=PARTS)

    def add(self, kind: RequestType, input_tokens: float, output_tokens: float) -> None:
        row = self._rows[3 * kind.input + kind.output]
        row[0] += 1.0
        row[1] += input_tokens
        row[2] += output_tokens

    def close_part(self, seconds: float) -> None:
        """A part of the epoch is over."""
        self._parts.append(np.array(self._rows) / seconds)
        for row in self._rows:
            row[:] = [0.0, 0.0, 0.0]

    def epoch(self) -> EpochLoad | None:
        """The last PARTS of them; None: there are not so many yet."""
        if len(self._parts) < PARTS:
            return None
        parts = np.array(self._parts)
        return EpochLoad(parts.mean(0), parts.max(0), parts[-LATE:].mean(0))
