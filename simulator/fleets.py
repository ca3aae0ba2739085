"""Pure: which engines the fleet of a scenario is made of, and how many of its baseline are the fewest."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from control.planner import PlanRules
from control.planner import fewest as planned
from joulegate.domain import Objectives, Size
from joulegate.engine_profile import EngineProfile
from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.cluster import Setup, Unsteered
from simulator.policies import kind_of
from simulator.recipe import Recipe
from simulator.results import P99_GRACE
from simulator.score import Ended, Score, Scorer
from simulator.spread import Spread
from simulator.streams import Kept
from simulator.workload import Bools, Load, Rows, Stream, busiest, by_input, census, held

HOUR, BUSIEST = 3600.0, 300.0  # seconds: what the fewest are sought on, and the part they must also serve
STRIDE = 8  # so many are followed by one more, twice as many by two
MOST = 16  # times the GPUs of the scenario's baseline: no more are tried


@dataclass(frozen=True, slots=True)
class Fleet:
    """The baseline's engine, and what instances may be built from; none: the fleet is as it is."""

    name: str
    baseline: EngineProfile
    builds: tuple[EngineProfile, ...] = ()
    given: bool = False  # instead of the scenario's

    @property
    def smallest(self) -> EngineProfile:
        """The engine whose KV cache holds the least."""
        return min((self.baseline, *self.builds), key=lambda profile: profile.engine.kv_capacity_tokens)


def fleets(given: Mapping[str, EngineProfile], tp: int) -> list[Fleet]:
    """Profiles by file name as fleets: one for each GPU and model, of one or several tensor-parallel sizes.

    The baseline is the one of `tp`, else the first. Raises UserError where two are of the same size.
    """
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for name, profile in given.items():
        sizes = groups.setdefault((profile.gpu, profile.model), {})
        other = sizes.setdefault(profile.tp, name)
        if other != name:
            raise UserError(
                f"{other} and {name} are both of {profile.gpu} with tensor parallelism {profile.tp}",
                "a fleet has one profile of each size: run them one after the other",
            )
    return [_fleet(given, sizes, tp) for sizes in groups.values()]


def _fleet(given: Mapping[str, EngineProfile], sizes: Mapping[int, str], tp: int) -> Fleet:
    baseline = sizes.get(tp, next(iter(sizes.values())))
    # the laws tell kinds apart by name, which copies of a file share
    builds = tuple(replace(given[name], name=name) for name in sizes.values())
    return Fleet(baseline, replace(given[baseline], name=baseline), builds, given=True)


def fitting(recipe: Recipe, profile: EngineProfile) -> tuple[Recipe, str]:
    """Without requests that its KV cache cannot hold, and what was left out. Raises UserError: none is left.

    An engine would pre-empt such a request and work it out anew for ever.
    """
    fits, count, lost, longest = Fits(profile.engine.kv_capacity_tokens), 0, 0, 0
    for stream in (recipe.trace, *(stream for stream, _ in recipe.also)):
        for part in stream.parts():
            count += len(part)
            lost += int(np.count_nonzero(~fits(part)))
            longest = max(longest, int((part.input + part.output).max()))
    if not lost:
        return recipe, ""
    said = (
        f"{lost} of {count} requests are longer (up to {longest} tokens) than the KV cache of "
        f"{profile.name} ({fits.capacity})"
    )
    if lost == count:
        raise UserError(said, "a profile with more kv_capacity_tokens, or a trace of shorter requests")
    also = tuple((Kept(stream, fits), factor) for stream, factor in recipe.also)
    return replace(recipe, trace=Kept(recipe.trace, fits), also=also), f"{said}: left out"


@dataclass(frozen=True, slots=True)
class Fits:
    """Which requests a KV cache of so many tokens holds."""

    capacity: int

    def __call__(self, rows: Rows) -> Bools:
        return rows.input + rows.output <= self.capacity


@dataclass(frozen=True, slots=True)
class Promise:
    """A P99 that is kept while at most `spare` of what is told to a spread is over its mark."""

    what: str
    taken: Spread
    spare: int
    when: str

    @property
    def is_broken(self) -> bool:
        """Whatever comes of those who have not ended."""
        return self.taken.count - self.taken.within > self.spare

    def __str__(self) -> str:
        return f"{self.what} over {self.taken.mark * 1e3:.0f} ms{self.when}"


def fewest(load: Stream, setup: Setup, most: int) -> tuple[int | None, list[str]]:
    """The smallest number of `setup`'s instances that misses nothing at maximum clock in the busiest hour.

    None: not even `most` do. With it, what more than 1 % are with one less (or `most`). Begins with what the
    mean load takes, which is too few; too few is seen before the hour is over.
    """
    hour, costs = _busiest_hour(load), setup.costs[:1]

    def broken(count: int) -> list[str]:
        scorer, made = promises(hour, setup)
        fleet = Unsteered(replace(setup, costs=costs * count), costs[0].profile.max_clock)
        for _ in fleet.play(hour, scorer):
            if found := [str(promise) for promise in made if promise.is_broken]:
                return found
        return []

    low, high, reasons = 0, min(most, _likely(hour, setup)), list[str]()
    while found := broken(high):
        low, reasons = high, found
        if high >= most:
            return None, reasons
        high = min(most, high + max(1, high // STRIDE))
    while high - low > 1:
        middle = (low + high) // 2
        found = broken(middle)
        low, high, reasons = (middle, high, found) if found else (low, middle, reasons)
    return high, reasons


def _likely(load: Stream, setup: Setup) -> int:
    """What the mean load takes."""
    brings = census(load)
    demand = brings.demand(brings.count / load.span)
    return planned(kind_of(setup.costs[0]), demand, setup.objectives.tpot, PlanRules()) or 1


def promises(hour: Load, setup: Setup) -> tuple[Scorer, list[Promise]]:
    """Every P99, and who counts: of all requests, and with P99_GRACE of those of the busiest five minutes.

    There P99 is that of few requests: without the grace the shipped S4a, with five, would need a sixth.
    """
    begin = busiest(hour, BUSIEST)
    few = Scorer(_wider(setup.objectives), setup.cuts)

    def hear(part: Ended) -> None:
        inside = (part.at >= begin) & (part.at < begin + BUSIEST)
        if inside.any():
            few.add(part.taken(inside))

    everyone = Scorer(setup.objectives, setup.cuts, hear=hear)
    busy = Kept(hour, lambda rows: (rows.at >= begin) & (rows.at < begin + BUSIEST))
    return everyone, [
        *_promised(everyone.score, hour, ""),
        *_promised(few.score, busy, " in the busiest five minutes"),
    ]


def _wider(aims: Objectives) -> Objectives:
    short, medium, long = (Seconds(P99_GRACE * ttft) for ttft in aims.ttft)
    e2e = None if aims.e2e is None else Seconds(P99_GRACE * aims.e2e)
    return Objectives((short, medium, long), Seconds(P99_GRACE * aims.tpot), e2e, None)


def _promised(score: Score, stream: Stream, when: str) -> list[Promise]:
    counts = by_input(stream, score.cuts)
    taken = [("TPOT", score.tpot, sum(counts))]
    if score.objectives.e2e is not None:
        taken.append(("E2E", score.e2e, sum(counts)))
    else:
        taken += [(f"TTFT of {size.name}", score.ttft[size], counts[size]) for size in Size]
    return [Promise(what, spread, _spare(count), when) for what, spread, count in taken if count]


def _spare(count: int) -> int:
    """How many of so many may be over their P99."""
    return count - 1 - ceil(0.99 * (count - 1))


def _busiest_hour(load: Stream) -> Load:
    if load.span <= HOUR:
        return held(load)
    start = busiest(load, HOUR)
    hour = held(Kept(load, lambda rows: (rows.at >= start) & (rows.at < start + HOUR)))
    return replace(hour, at=hour.at - start, span=Seconds(HOUR))
