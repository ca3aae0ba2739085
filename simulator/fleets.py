"""Pure: which engines the fleet of a scenario is made of, and how many of its baseline are the fewest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from control.floor import Demand
from control.planner import PlanRules
from control.planner import fewest as planned
from joulegate.domain import Cuts, Objectives, Size
from joulegate.engine_profile import EngineProfile
from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.cluster import Setup, Unsteered
from simulator.policies import kind_of
from simulator.results import P99_GRACE
from simulator.roll import Roll
from simulator.workload import Floats, Load, Recipe

Rows = NDArray[np.intp]  # of a load

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
    capacity = profile.engine.kv_capacity_tokens
    loads = [recipe.trace, *(load for load, _ in recipe.also)]
    sizes = np.concatenate([load.input + load.output for load in loads])
    lost = int(np.count_nonzero(sizes > capacity))
    if not lost:
        return recipe, ""
    said = (
        f"{lost} of {len(sizes)} requests are longer (up to {sizes.max()} tokens) than the KV cache of "
        f"{profile.name} ({capacity})"
    )
    if lost == len(sizes):
        raise UserError(said, "a profile with more kv_capacity_tokens, or a trace of shorter requests")
    also = tuple((_within(load, capacity), factor) for load, factor in recipe.also)
    return replace(recipe, trace=_within(recipe.trace, capacity), also=also), f"{said}: left out"


def _within(load: Load, capacity: int) -> Load:
    rows = load.input + load.output <= capacity
    return Load(load.at[rows], load.input[rows], load.output[rows], load.span)


@dataclass(frozen=True, slots=True, eq=False)
class Promise:
    """A P99 that is kept while at most `spare` of some requests take longer than `limit` seconds."""

    what: str
    rows: Rows
    limit: float
    taken: Callable[[Roll, Rows], Floats]  # seconds; NaN of who has not ended
    when: str = ""

    @property
    def spare(self) -> int:
        last = len(self.rows) - 1
        return last - ceil(0.99 * last)

    def is_broken(self, roll: Roll) -> bool:
        """Whatever comes of those who have not ended."""
        return int(np.count_nonzero(self.taken(roll, self.rows) > self.limit)) > self.spare

    def __str__(self) -> str:
        return f"{self.what} over {self.limit * 1e3:.0f} ms{self.when}"


def fewest(load: Load, setup: Setup, most: int) -> tuple[int | None, list[str]]:
    """The smallest number of `setup`'s instances that misses nothing at maximum clock in the busiest hour.

    None: not even `most` do. With it, what more than 1 % are with one less (or `most`). Begins with what the
    mean load takes, which is too few; too few is seen before the hour is over.
    """
    hour, costs, aims = _busiest_hour(load), setup.costs[:1], setup.objectives
    made = promises(hour, aims)

    def broken(count: int) -> list[str]:
        fleet = Unsteered(replace(setup, costs=costs * count), costs[0].profile.max_clock)
        for roll in fleet.play(hour):
            if found := [str(promise) for promise in made if promise.is_broken(roll)]:
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


def _likely(load: Load, setup: Setup) -> int:
    """What the mean load takes."""
    tokens = float(load.input.mean())
    demand = Demand(len(load) / load.span, tokens, tokens, float(load.output.mean()))
    return planned(kind_of(setup.costs[0]), demand, setup.objectives.tpot, PlanRules()) or 1


def promises(load: Load, aims: Objectives) -> list[Promise]:
    """Every P99: of all requests, and with P99_GRACE of those of the busiest five minutes.

    There P99 is that of few requests: without the grace the shipped S4a, with five, would need a sixth.
    """
    everyone, busy = np.arange(len(load)), np.arange(*_busiest(load, BUSIEST))
    sizes = np.searchsorted(np.array(Cuts().input), load.input, side="right")
    made = list[Promise]()
    for rows, grace, when in ((everyone, 1.0, ""), (busy, P99_GRACE, " in the busiest five minutes")):
        made.append(Promise("TPOT", rows, grace * aims.tpot, _tpot, when))
        if aims.e2e is not None:
            made.append(Promise("E2E", rows, grace * aims.e2e, _e2e, when))
        else:
            made += [
                Promise(
                    f"TTFT of {size.name}", rows[sizes[rows] == size], grace * aims.ttft[size], _ttft, when
                )
                for size in Size
            ]
    return [promise for promise in made if len(promise.rows)]


def _ttft(roll: Roll, rows: Rows) -> Floats:
    return roll.first_token[rows] - roll.load.at[rows]


def _e2e(roll: Roll, rows: Rows) -> Floats:
    return roll.finished[rows] - roll.load.at[rows]


def _tpot(roll: Roll, rows: Rows) -> Floats:
    steps = np.maximum(1, roll.output[rows] - 1)
    taken: Floats = (roll.finished[rows] - roll.first_token[rows]) / steps
    return taken


def _busiest(load: Load, span: float) -> tuple[int, int]:
    """First row and the one after the last of the so many seconds with the most requests."""
    after = np.searchsorted(load.at, load.at + span, side="left")
    first = int(np.argmax(after - np.arange(len(load))))
    return first, int(after[first])


def _busiest_hour(load: Load) -> Load:
    if load.span <= HOUR:
        return load
    first, last = _busiest(load, HOUR)
    rows, start = slice(first, last), load.at[first]
    return Load(load.at[rows] - start, load.input[rows], load.output[rows], Seconds(HOUR))
