"""Pure: a scenario from its settings to comparable results: load level, seeds, halves, verdicts.

A policy is tuned on the first half of the trace and scored on the second; `swapped` the other way round.
Requests are pooled over seeds, as many as give every input size 2,000 requests in the scored half, at least
three and, where nobody says more, at most twelve.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from joulegate.domain import Objectives
from joulegate.errors import UserError
from joulegate.settings.scenario import Scenario
from joulegate.units import Seconds
from simulator.cluster import Setup
from simulator.costs import EngineCosts
from simulator.policies import Case, Terms, best_static, run_policy
from simulator.recipe import Recipe
from simulator.results import Pooled, Run
from simulator.streams import Half
from simulator.sustain import Sustained, largest_scale, scale_for, sustainable, with_e2e
from simulator.workload import by_input, census

MIN_SEEDS = 3
MIN_REQUESTS = 2000  # of each input size, pooled over seeds
MAX_SEEDS = 12
FEWEST = 20  # requests of a trace
MOST = 50_000_000  # more than an hour of any policy
NO_OBJECTIVE = Seconds(3600.0)

T = TypeVar("T")
# maps a function over argument tuples, in any order of execution, results in order
Mapper = Callable[[Callable[..., T], Sequence[tuple[object, ...]]], Iterable[T]]


@dataclass(frozen=True, slots=True)
class Bench:
    """A scenario ready to run."""

    name: str
    terms: Terms
    factor: float  # times the trace
    sustained: Sustained | None
    cases: tuple[Case, ...]
    asked: int  # seeds that the counting rule asks for

    @property
    def objectives(self) -> Objectives:
        return self.terms.setup.objectives


def prepare(
    scenario: Scenario, recipe: Recipe, setup: Setup, builds: tuple[EngineCosts, ...], seeds: int | None
) -> Bench:
    """Work out the load level (of one instance, times their number), E*, and the seeds."""
    objectives = objectives_of(scenario)
    bare = replace(setup, objectives=objectives, costs=setup.costs[:1])
    level, trace = scenario.load, recipe.trace
    threshold = level.attainment_pct if scenario.objectives == "D" else None
    sustained = sustainable(trace, bare, threshold) if _needs_sustained(scenario) else None
    factor = level.scale
    if factor is None and sustained is not None and level.sustained_on == "constant":
        factor = scenario.instances * scale_for(trace, sustained.rate, level.peak_pct / 100.0)
    elif factor is None:
        largest = largest_scale(trace, bare, level.attainment_pct)
        factor = scenario.instances * level.peak_pct / 100.0 * largest
    if recipe.expected(factor) > MOST:
        raise UserError(
            f"{factor:g} times the trace are more than {MOST:,} requests", "give a smaller --scale"
        )
    given = scenario.throughput.e2e_ms if scenario.objectives == "T" else None
    e2e = given / 1e3 if given is not None else sustained.e2e_p99 if sustained is not None else NO_OBJECTIVE
    if scenario.objectives == "T":
        objectives = with_e2e(objectives, e2e)
    asked = enough_seeds(recipe, factor, setup)
    chosen = seeds or scenario.seeds or min(MAX_SEEDS, asked)
    cases = tuple(_case(recipe, factor, seed) for seed in range(chosen))
    fleet = _owned(replace(setup, objectives=objectives))
    terms = Terms(fleet, Seconds(e2e), scenario.max_slowdown, builds)
    return Bench(scenario.name, terms, factor, sustained, cases, asked)


def resized(bench: Bench, instances: int) -> Bench:
    """With so many instances as its baseline, at the same load."""
    fleet = bench.terms.setup
    fleet = _owned(replace(fleet, costs=fleet.costs[:1] * instances))
    return replace(bench, terms=replace(bench.terms, setup=fleet))


def _owned(fleet: Setup) -> Setup:
    """Its GPUs are paid for, on or off: nobody has more than the baseline."""
    return replace(fleet, owned_gpus=float(sum(costs.profile.tp for costs in fleet.costs)))


def _needs_sustained(scenario: Scenario) -> bool:
    """Whether the load level or E* has to be measured on the engine."""
    if scenario.load.scale is None and scenario.load.sustained_on == "constant":
        return True
    if scenario.objectives == "T" and scenario.throughput.e2e_ms is None:
        return True
    return "throttllem" in scenario.policies


def objectives_of(scenario: Scenario) -> Objectives:
    """Without E*, which the engine has to tell."""
    if scenario.objectives == "T":
        return Objectives((NO_OBJECTIVE,) * 3, Seconds(scenario.throughput.tpot_ms / 1e3), None, None)
    short, medium, long = (Seconds(ms / 1e3) for ms in scenario.interactive.ttft_ms)
    return Objectives((short, medium, long), Seconds(scenario.interactive.tpot_ms / 1e3), None, None)


def enough_seeds(recipe: Recipe, factor: float, setup: Setup) -> int:
    """So many that every input size has MIN_REQUESTS in the scored half."""
    fewest = min(by_input(Half(recipe.load(factor, 0), second=True), setup.cuts))
    if not fewest:
        return MIN_SEEDS
    return max(MIN_SEEDS, -(-MIN_REQUESTS // fewest))


def _case(recipe: Recipe, factor: float, seed: int) -> Case:
    load = recipe.load(factor, seed)
    first, second = Half(load, second=False), Half(load, second=True)
    early, late = census(first).count, census(second).count
    if early + late < FEWEST or load.span <= 0.0:
        raise UserError(
            f"{early + late} requests over {load.span:g} s: too few to learn from and to score",
            f"a trace of {FEWEST} requests or more, or a larger --scale",
        )
    if not early or not late:
        raise UserError("one half of the trace is empty", "halves are by time: cut the trace to its load")
    return Case(seed, first, second)


def swapped(bench: Bench) -> Bench:
    """Learned on the second half, scored on the first."""
    cases = tuple(replace(case, learn=case.score, score=case.learn) for case in bench.cases)
    return replace(bench, cases=cases)


def compare(bench: Bench, policies: Sequence[str], mapper: Mapper[Run]) -> Mapping[str, Pooled]:
    """Every policy on every seed; `max-clock` is always among them."""
    names = list(dict.fromkeys(("max-clock", *policies)))
    static = best_static(bench.cases, bench.terms.setup) if "static-best" in names else None
    work: list[tuple[object, ...]] = [
        (name, case, bench.terms, static) for name in names for case in bench.cases
    ]
    runs = list(mapper(run_policy, work))
    count = len(bench.cases)
    return {name: Pooled(tuple(runs[i * count : (i + 1) * count])) for i, name in enumerate(names)}
