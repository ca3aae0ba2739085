"""Pure: which engines the fleet of a scenario is made of, and how many of its baseline are the fewest."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from joulegate.domain import Objectives, Size
from joulegate.engine_profile import EngineProfile
from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.cluster import Setup, run_fixed
from simulator.results import P99_GRACE, Pooled, Run
from simulator.workload import Load, Recipe

HOUR, BUSIEST = 3600.0, 300.0  # seconds: what the fewest are sought on, and the part they must also serve
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


def fewest(load: Load, setup: Setup, start: int, most: int) -> tuple[int | None, list[str]]:
    """The smallest number of `setup`'s instances that misses nothing at maximum clock in the busiest hour.

    None: not even `most` do. With it, what one less (or `most`) misses.
    """
    hour, costs = _busiest_hour(load), setup.costs[:1]

    def misses(count: int) -> list[str]:
        run = run_fixed(hour, replace(setup, costs=costs * count), costs[0].profile.max_clock)
        return missed(run, hour, setup.objectives)

    low, high, reasons = 0, start, list[str]()
    while found := misses(high):
        low, reasons = high, found
        if high >= most:
            return None, reasons
        high = min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        found = misses(middle)
        low, high, reasons = (middle, high, found) if found else (low, middle, reasons)
    return high, reasons


def missed(run: Run, load: Load, aims: Objectives) -> list[str]:
    """Every objective that the P99 of all requests is over, or P99_GRACE of it in the busiest five minutes.

    There P99 is that of few requests: without the grace the shipped S4a, with five, would need a sixth.
    """
    first, last = _busiest(load, BUSIEST)
    part = slice(first, last)
    busy = replace(
        run,
        input=run.input[part],
        output=run.output[part],
        ttft=run.ttft[part],
        tpot=run.tpot[part],
        e2e=run.e2e[part],
    )
    return [*_over(run, aims, 1.0, ""), *_over(busy, aims, P99_GRACE, " of the busiest five minutes")]


def _over(run: Run, aims: Objectives, grace: float, when: str) -> list[str]:
    pooled = Pooled((run,), aims)
    rows: list[tuple[str, float | None, float]] = [("TPOT", pooled.p99("tpot"), aims.tpot)]
    if aims.e2e is not None:
        rows.append(("E2E", pooled.p99("e2e"), aims.e2e))
    else:
        rows += [(f"TTFT of {size.name}", pooled.ttft_p99(size), aims.ttft[size]) for size in Size]
    return [
        f"P99 {what}{when} {value * 1e3:.0f} ms over {limit * 1e3:.0f} ms"
        for what, value, objective in rows
        if value is not None and value > (limit := grace * objective)
    ]


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
