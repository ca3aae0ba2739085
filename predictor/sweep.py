"""Pure: which points a live sweep measures, in which order, how long that takes, and what it found.

Points go from the highest clock down, so that a sweep that is cut short has learned the safe end first,
and an engine is never left at a low clock while the next one is looked for. `simulator.profile_run`
carries it out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, comb, sqrt

from joulegate.units import MegaHertz, Seconds
from predictor.latency_data import Row

LEAST_TOKENS = 32  # of output per sequence: what a decode window is made of
MOST_TOKENS = 256
CHUNK = 2048  # prompt tokens an iteration takes, where the engine does not say
SETTLE = Seconds(0.8)  # after a clock change, before anything is measured
OVERHEAD = Seconds(0.15)  # of a point: connecting, the first and the last iteration
LEAST_ROUNDS = 3  # of a point, to say how far its median may be off
BATCH_COST = 100.0  # sequences that double the time of an iteration: for the estimate only

Key = tuple[str, int, int, int, int]  # phase, batch, context, new tokens, clock


@dataclass(frozen=True, slots=True)
class Grid:
    """What to sweep; tokens."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]  # of each sequence, in the middle of the window
    prompts: tuple[int, ...]
    window: Seconds  # how long a point is watched, at least
    capacity: int | None = None  # KV tokens the engine holds; points beyond are left out


@dataclass(frozen=True, slots=True)
class Point:
    phase: str  # "decode" or "prefill"
    batch: int
    context: int
    new_tokens: int
    clock: MegaHertz

    @property
    def key(self) -> Key:
        return self.phase, self.batch, self.context, self.new_tokens, self.clock


@dataclass(frozen=True, slots=True)
class Probe:
    """One sequence at full clock: what the time of the whole sweep is estimated from."""

    iteration: Seconds
    prompt_token: Seconds


def plan(grid: Grid, clocks: Sequence[MegaHertz], done: Collection[Key]) -> tuple[Point, ...]:
    """Points still to be measured, highest clock first, light loads before heavy ones."""
    points = []
    for clock in sorted(set(clocks), reverse=True):
        points += [Point("prefill", 1, 0, prompt, clock) for prompt in sorted(set(grid.prompts))]
        points += [
            Point("decode", batch, context, 0, clock)
            for batch in sorted(set(grid.batches))
            for context in sorted(set(grid.contexts))
            if grid.capacity is None or batch * (context + MOST_TOKENS) <= grid.capacity
        ]
    return tuple(point for point in points if point.key not in done)


def spread(clocks: Sequence[MegaHertz], count: int) -> tuple[MegaHertz, ...]:
    """At most `count` clocks, evenly in MHz, the lowest and the highest among them."""
    ladder = sorted(set(clocks))
    if count >= len(ladder):
        return tuple(ladder)
    if count == 1:
        return (ladder[-1],)
    step = (ladder[-1] - ladder[0]) / (count - 1)
    wanted = [ladder[0] + step * i for i in range(count)]
    return tuple(sorted({min(ladder, key=lambda clock: abs(clock - at)) for at in wanted}))


def output_tokens(point: Point, iteration: Seconds, window: Seconds) -> int:
    """Tokens per sequence that fill the window, without leaving the context behind: at most all of it.

    The first sequences decode while the last are still being prefilled: that comes on top.
    """
    waiting = point.batch * point.context // CHUNK
    wanted = max(LEAST_TOKENS, min(MOST_TOKENS, ceil(window / iteration) + waiting))
    return min(wanted, 2 * (point.context - 1)) if point.context > 1 else wanted


def iteration_guess(point: Point, probe: Probe, top: MegaHertz) -> Seconds:
    """Slow rather than fast: as if the engine were bound by its clock."""
    return Seconds(probe.iteration * (1.0 + point.batch / BATCH_COST) * top / point.clock)


def duration(points: Iterable[Point], probe: Probe, top: MegaHertz, window: Seconds) -> Seconds:
    """About how long these points take."""
    total = 0.0
    clock: MegaHertz | None = None
    for point in points:
        total += OVERHEAD + (SETTLE if point.clock != clock else 0.0)
        clock = point.clock
        prompt_token = probe.prompt_token * top / point.clock
        if point.phase == "prefill":
            once = probe.iteration + prompt_token * point.new_tokens
            total += max(window, 3.0 * once)
        else:
            iteration = iteration_guess(point, probe, top)
            total += iteration * output_tokens(point, iteration, window)
            total += prompt_token * point.batch * point.context
    return Seconds(total)


def median_error(values: Sequence[float]) -> float | None:
    """Standard error of the median of these (of an even number: the upper one); None: too few to say.

    The exact bootstrap: how often each value is the median of as many drawn from them (J. S. Maritz and R. G.
    Jarrett, JASA 1978; B. Efron, Ann. Statist. 1979). Of a few values it is somewhat too much: where they are
    normal a seventh of it, which is a third of the variance.
    """
    number = len(values)
    if number < LEAST_ROUNDS:
        return None
    rank = number // 2 + 1
    at_most = [
        sum(comb(number, k) * p**k * (1.0 - p) ** (number - k) for k in range(rank, number + 1))
        for p in (place / number for place in range(number + 1))
    ]
    shares = [later - sooner for sooner, later in pairwise(at_most)]
    ordered = sorted(values)
    mean = sum(share * value for share, value in zip(shares, ordered, strict=True))
    return sqrt(sum(share * (value - mean) ** 2 for share, value in zip(shares, ordered, strict=True)))


@dataclass(frozen=True, slots=True)
class Step:
    """One clock of one load."""

    clock: MegaHertz
    slowdown: float  # against the highest clock that was swept
    joules_per_token: float


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """Energy per token against slowdown of one load; `best` needs the least energy per token."""

    phase: str
    batch: int
    context: int
    new_tokens: int
    steps: tuple[Step, ...]  # ascending clocks
    best: Step

    @property
    def saving_ratio(self) -> float:
        """Energy per token that the best clock saves, against the highest."""
        return 1.0 - self.best.joules_per_token / self.steps[-1].joules_per_token


def energy_curves(rows: Iterable[Row], gpus: int) -> list[LoadCurve]:
    """A curve for every load with power readings at two clocks or more ("Towards Greener LLMs" §3).

    Tokens: one per sequence of a decode iteration, every token of a prompt.
    """
    loads: dict[tuple[str, int, int, int], dict[MegaHertz, Row]] = {}
    for row in rows:
        if row.watts:
            context = round(row.batch.context_tokens / max(1, row.batch.decoding))
            load = (row.phase, row.batch.decoding, context, row.batch.prefill_tokens)
            loads.setdefault(load, {})[MegaHertz(round(row.clock))] = row
    curves = []
    for (phase, batch, context, new), by_clock in loads.items():
        if len(by_clock) > 1:
            steps = _steps(by_clock, gpus)
            best = min(steps, key=lambda step: step.joules_per_token)
            curves.append(LoadCurve(phase, batch, context, new, steps, best))
    return curves


def _steps(by_clock: Mapping[MegaHertz, Row], gpus: int) -> tuple[Step, ...]:
    top = by_clock[max(by_clock)]
    return tuple(
        Step(
            clock=clock,
            slowdown=row.seconds / top.seconds,
            joules_per_token=(row.watts or 0.0)
            * gpus
            * row.seconds
            / (row.batch.decoding + row.batch.prefill_tokens),
        )
        for clock, row in sorted(by_clock.items())
    )
