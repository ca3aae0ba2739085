"""Pure: plain routing, without a gateway: every request to the least loaded of many simulated instances.

Theory of operation. Load is sequences, running or waiting, and 400 queued prompt tokens as one, per GPU. It
changes when a request is sent, and when an engine has news: a first token, a completion. So an arrival looks
only at engines that may have news (`Engine.quiet_until`) and takes the least load from a heap, of which an
entry counts while it is the instance's present load. Thousands of instances cost little more than one.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf

from simulator.jobs import Job
from simulator.station import Station

SEQUENCE_TOKENS = 400.0  # queued prompt tokens that weigh as much as a sequence


class LeastLoaded:
    """Instances in a row; of equally loaded ones the first gets the request. Who ends is told to `ended`."""

    def __init__(self, stations: Sequence[Station], ended: Callable[[Job], None]) -> None:
        self._stations = stations
        self._ended = ended
        self._queued = [0] * len(stations)  # prompt tokens without a first token
        self._loads = [0.0] * len(stations)
        self._quiet = [inf] * len(stations)  # nothing to see before
        self._least = [(0.0, n) for n in range(len(stations))]  # heap: load, instance
        self._due: list[tuple[float, int]] = []  # heap: when an instance may have news

    def send(self, job: Job, at: float) -> None:
        """To the least loaded, as far as is known."""
        least = self._least
        while least[0][0] != self._loads[least[0][1]]:
            heappop(least)
        n = least[0][1]
        self._queued[n] += job.prompt_tokens
        self._stations[n].engine.submit(job, at)
        self._note(n)

    def hear(self, now: float) -> None:
        """Engines that may have news to `now`."""
        due, seen = self._due, list[int]()
        while due and due[0][0] <= now:
            quiet, n = heappop(due)
            if quiet == self._quiet[n]:
                self._quiet[n] = inf
                seen.append(n)
        for n in seen:
            self._advance(n, now)

    def advance(self, now: float) -> None:
        """Every engine to `now`."""
        for n in range(len(self._stations)):
            self._advance(n, now)

    def _advance(self, n: int, now: float) -> None:
        events = self._stations[n].engine.advance(now)
        for job in events.first_tokens:
            self._queued[n] -= job.prompt_tokens
        for job in events.finished:
            self._ended(job)
        self._note(n)

    def _note(self, n: int) -> None:
        """The load of an instance as it is now, and when to look at it again."""
        station = self._stations[n]
        engine = station.engine
        load = (engine.running + engine.waiting + self._queued[n] / SEQUENCE_TOKENS) / station.profile.tp
        if load != self._loads[n]:
            self._loads[n] = load
            heappush(self._least, (load, n))
            if len(self._least) > 16 * len(self._stations):
                self._least = [(each, m) for m, each in enumerate(self._loads)]
                heapify(self._least)
        quiet = engine.quiet_until()
        if quiet not in (self._quiet[n], inf):
            heappush(self._due, (quiet, n))
        self._quiet[n] = quiet
