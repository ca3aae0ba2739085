"""Pure: what became of the requests of a run, counted as they end; nothing is kept of a single one.

Counts are exact, and so is whether a percentile is over its objective; a percentile itself is right to 0.05 %
(`simulator.spread`). Who wants to see every request listens with `Scorer(hear=...)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from joulegate.domain import Batch, Cuts, Objectives, Size
from predictor.physics import PhysicsModel
from simulator.jobs import Job
from simulator.spread import Spread, together
from simulator.workload import Bools, Floats, Ints

FIVE = 5.0  # the "5x" objectives: times the same request alone at maximum clock
Spreads = tuple[Spread, Spread, Spread]


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """Some requests that ended or were turned away. Tokens and seconds; inf where one was not served."""

    key: Ints  # place among the arrivals
    at: Floats
    input: Ints
    output: Ints
    ttft: Floats
    tpot: Floats
    e2e: Floats

    def taken(self, rows: Bools | Ints) -> "Ended":
        return Ended(*(getattr(self, each.name)[rows] for each in fields(self)))


def joined(parts: Sequence[Ended]) -> Ended:
    return Ended(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Ended)))


def ended(jobs: Sequence[Job]) -> Ended:
    at = np.array([job.arrived_at for job in jobs])
    first = np.array([job.first_token_at for job in jobs])
    last = np.array([job.finished_at for job in jobs])
    output = np.array([job.output_tokens for job in jobs])
    unserved, steps = np.isnan(last), np.maximum(1, output - 1)
    return Ended(
        key=np.array([job.key for job in jobs]),
        at=at,
        input=np.array([job.prompt_tokens for job in jobs]),
        output=output,
        ttft=np.where(unserved, np.inf, first - at),
        tpot=np.where(unserved, np.inf, np.where(output > 1, (last - first) / steps, 0.0)),
        e2e=np.where(unserved, np.inf, last - at),
    )


class Everyone:
    """Keeps every request, for who must see each: as much memory as there are requests."""

    def __init__(self) -> None:
        self._parts: list[Ended] = []

    def hear(self, part: Ended) -> None:
        self._parts.append(part)

    def all(self) -> Ended:
        """In order of arrival."""
        whole = joined(self._parts)
        return whole.taken(np.argsort(whole.key, kind="stable"))


class Alone:
    """Which requests are within five times their own latencies, alone at maximum clock."""

    def __init__(self, model: PhysicsModel) -> None:
        self._model = model
        self._prefill: dict[int, float] = {}  # seconds by prompt tokens
        top = model.clocks[-1]
        self._base = float(model.iteration_time(Batch(1, 0.0), top))
        self._slope = float(model.iteration_time(Batch(1, 1000.0), top)) - self._base

    def within(self, part: Ended) -> Bools:
        ttft = np.array([self._first_token(tokens) for tokens in part.input.tolist()])
        context = part.input + 0.5 * part.output
        step = self._base + self._slope * context / 1000.0
        return (part.ttft <= FIVE * ttft) & (part.tpot <= FIVE * step)

    def _first_token(self, tokens: int) -> float:
        known = self._prefill.get(tokens)
        if known is None:
            known = self._prefill[tokens] = self._worked_out(tokens)
        return known

    def _worked_out(self, tokens: int) -> float:
        top, chunk = self._model.clocks[-1], self._model.profile.engine.max_num_batched_tokens
        time, done = 0.0, 0
        while done < tokens:
            n = min(chunk, tokens - done)
            time += self._model.iteration_time(Batch(0, 0.0, n, n * (done + 0.5 * n)), top)
            done += n
        return time


@dataclass(slots=True, eq=False)
class Score:
    """Counts of requests and tokens, and how latencies are spread."""

    objectives: Objectives
    cuts: Cuts
    requests: int = 0
    met: int = 0  # requests within all objectives
    output: int = 0  # tokens that were asked for
    output_met: int = 0  # of those, by requests within all objectives
    output_served: int = 0
    input_served: int = 0
    fives: int | None = None  # within five times their own latencies; None: not looked at
    ttft: Spreads = field(init=False)  # by input size
    tpot: Spread = field(init=False)
    e2e: Spread = field(init=False)

    def __post_init__(self) -> None:
        short, medium, long = self.objectives.ttft
        self.ttft = Spread(short), Spread(medium), Spread(long)
        self.tpot = Spread(self.objectives.tpot)
        self.e2e = Spread() if self.objectives.e2e is None else Spread(self.objectives.e2e)

    def add(self, part: Ended) -> None:
        sizes = np.searchsorted(np.array(self.cuts.input), part.input, side="right")
        met, served = self._met(part, sizes), np.isfinite(part.ttft)
        self.requests += len(met)
        self.met += int(np.count_nonzero(met))
        self.output += int(part.output.sum())
        self.output_met += int(part.output[met].sum())
        self.output_served += int(part.output[served].sum())
        self.input_served += int(part.input[served].sum())
        for size in Size:
            self.ttft[size].add(part.ttft[sizes == size])
        self.tpot.add(part.tpot)
        self.e2e.add(part.e2e)

    def _met(self, part: Ended, sizes: Ints) -> Bools:
        aims = self.objectives
        met: Bools = part.tpot <= aims.tpot
        if aims.e2e is not None:
            return met & (part.e2e <= aims.e2e)
        return met & (part.ttft <= np.array(aims.ttft)[sizes])


def total(scores: Sequence[Score]) -> Score:
    """Of all requests together; the same objectives everywhere."""
    whole = Score(scores[0].objectives, scores[0].cuts)
    for name in ("requests", "met", "output", "output_met", "output_served", "input_served"):
        setattr(whole, name, sum(getattr(score, name) for score in scores))
    fives = [score.fives for score in scores if score.fives is not None]
    whole.fives = sum(fives) if len(fives) == len(scores) else None
    short, medium, long = (together([score.ttft[size] for score in scores]) for size in Size)
    whole.ttft = short, medium, long
    whole.tpot = together([score.tpot for score in scores])
    whole.e2e = together([score.e2e for score in scores])
    return whole


class Scorer:
    """Counts what ends. `hear` is told all of it too."""

    def __init__(
        self,
        objectives: Objectives,
        cuts: Cuts,
        alone: Alone | None = None,
        hear: Callable[[Ended], None] | None = None,
    ) -> None:
        self.score = Score(objectives, cuts)
        self._alone, self._hear = alone, hear
        if alone is not None:
            self.score.fives = 0

    def add(self, part: Ended) -> None:
        self.score.add(part)
        if self._alone is not None and self.score.fives is not None:
            self.score.fives += int(np.count_nonzero(self._alone.within(part)))
        if self._hear is not None:
            self._hear(part)
