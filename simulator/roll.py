"""Pure: the requests of a simulated load: sequences while they are there, told to a scorer when they end."""

from collections.abc import Iterator
from itertools import starmap
from math import inf

import numpy as np

from simulator.jobs import Job
from simulator.score import Scorer, ended
from simulator.workload import Stream

TOLD_AT_ONCE = 4096  # requests


class Roll:
    """Every request of a load, in order of arrival. Times are seconds."""

    def __init__(self, load: Stream, scorer: Scorer) -> None:
        self.present: dict[int, Job] = {}
        self.last_end = 0.0
        self.next_at = 0.0  # of the next that arrives; inf: nobody does
        self._coming = _jobs(load)
        self._scorer = scorer
        self._ended: list[Job] = []
        self._turn()

    def enter(self) -> Job:
        """The next one has arrived."""
        job = self._next
        assert job is not None, "nobody arrives any more"
        self.present[job.key] = job
        self._turn()
        return job

    def again(self, key: int) -> Job:
        """One that is there begins anew."""
        before = self.present[key]
        job = self.present[key] = Job(key, before.prompt_tokens, before.output_tokens, before.arrived_at)
        job.cached = job.prefilled = before.cached
        return job

    def _turn(self) -> None:
        """To the next one to arrive."""
        self._next = next(self._coming, None)
        self.next_at = inf if self._next is None else self._next.arrived_at

    def strike(self, job: Job) -> None:
        """It has ended or was turned away."""
        del self.present[job.key]
        if job.finished_at > self.last_end:  # never of one that was turned away: its time is NaN
            self.last_end = job.finished_at
        self._ended.append(job)
        if len(self._ended) == TOLD_AT_ONCE:
            self.tell()

    def tell(self) -> None:
        """What has ended since the last time."""
        if self._ended:
            self._scorer.add(ended(self._ended))
            self._ended = []


def _jobs(load: Stream) -> Iterator[Job]:
    """Every request as a sequence, in order of arrival."""
    key = 0
    for part in load.parts():
        keys, prompts, answers = (
            range(key, key + len(part)),
            np.maximum(1, part.input),
            np.maximum(1, part.output),
        )
        made = zip(keys, prompts.tolist(), answers.tolist(), part.at.tolist(), strict=True)
        key += len(part)
        if part.cached is None:
            yield from starmap(Job, made)
            continue
        # the last token of a prompt is always worked out
        for row, cached in zip(made, np.minimum(part.cached, prompts - 1).tolist(), strict=True):
            job = Job(*row)
            job.cached = job.prefilled = cached
            yield job
