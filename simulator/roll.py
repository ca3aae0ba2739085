"""Pure: the requests of a simulated load: sequences while they are there, what became of each in arrays."""

import numpy as np

from simulator.jobs import Job
from simulator.workload import Load


class Roll:
    """Every request of a load, by its place in it. Times are seconds; NaN until they happen."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.output = np.maximum(1, load.output)  # tokens
        self.first_token = np.full(len(load), np.nan)
        self.finished = np.full(len(load), np.nan)
        self.present: dict[int, Job] = {}
        self.last_end = 0.0

    def enter(self, key: int) -> Job:
        """It has arrived."""
        prompt = max(1, int(self.load.input[key]))
        job = self.present[key] = Job(key, prompt, int(self.output[key]))
        if self.load.cached is not None:  # the last token of a prompt is always worked out
            job.prefilled = min(int(self.load.cached[key]), prompt - 1)
        return job

    def strike(self, job: Job) -> None:
        """It has ended or was turned away."""
        del self.present[job.key]
        self.first_token[job.key], self.finished[job.key] = job.first_token_at, job.finished_at
        if job.finished_at > self.last_end:  # never of one that was turned away: its time is NaN
            self.last_end = job.finished_at
