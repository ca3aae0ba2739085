"""Shell: reads a scenario and what it names, runs it over processes with a progress bar."""

import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import joblib
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control.fleet_solver import solution
from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.errors import UserError
from joulegate.settings.load import load
from joulegate.settings.nearest import did_you_mean
from joulegate.settings.plan import Plan
from joulegate.settings.scenario import POLICIES, Scenario
from joulegate.units import Seconds
from simulator import scenario as scenarios
from simulator.cluster import Setup
from simulator.costs import EngineCosts
from simulator.fleets import MOST, Fleet, fewest, fitting, fleets
from simulator.recipe import Daily, Recipe
from simulator.results import Run
from simulator.scaling import Elastic
from simulator.scenario import Bench
from simulator.spool import spooled
from simulator.summary import Comparison, document

SWEEP_EVERY = 200_000  # objects made before garbage in cycles is looked for; Python's own: 700


@dataclass(frozen=True, slots=True)
class Request:
    """The command line. Empty or None: as the scenario says."""

    scenario: Path
    policies: tuple[str, ...] = ()
    profiles: tuple[Path, ...] = ()
    trace: Path | None = None
    scale: float | None = None
    objectives: str | None = None
    seeds: int | None = None
    jobs: int = 1
    swapped: bool = True


def simulate_all(request: Request) -> list[tuple[Comparison, dict[str, Any]]]:
    """The scenario on each profile, with its document. Raises UserError."""
    settings = changed(load(request.scenario, Scenario), request)
    answers = []
    with tempfile.TemporaryDirectory(prefix="joulegate-") as folder, _bar() as progress:
        recipe = recipe_of(settings, Path(folder))
        for fleet in fleets_of(settings, request.profiles):
            began = time.perf_counter()
            result = _compared(settings, recipe, fleet, request, progress)
            answers.append((result, document(result, time.perf_counter() - began)))
    return answers


def changed(settings: Scenario, request: Request) -> Scenario:
    """The scenario with what the command line says instead. Raises UserError."""
    updates: dict[str, Any] = {}
    for name in request.policies:
        if name not in POLICIES:
            known = f"policies: {', '.join(POLICIES)}"
            raise UserError(f"no such policy: {name!r}", did_you_mean(name, POLICIES) or known)
    if request.policies:
        updates["policies"] = request.policies
    if request.trace is not None:
        updates["trace"] = request.trace
    if request.objectives is not None:
        if request.objectives not in ("D", "T"):
            raise UserError(
                f"no such objectives: {request.objectives!r}", "D (interactive) or T (throughput)"
            )
        updates["objectives"] = request.objectives
    if request.scale is not None:
        updates["load"] = settings.load.model_copy(update={"scale": request.scale})
    return settings.model_copy(update=updates)


def recipe_of(settings: Scenario, folder: Path) -> Recipe:
    """The traces of a scenario, read, and written down in `folder`. Raises UserError."""
    day = settings.day
    shape = None if day is None else Daily(day.mean_per_s, day.low, day.swing, day.peak_hour)
    also = tuple((spooled(one.trace, folder), one.scale) for one in settings.also)
    return Recipe(spooled(settings.trace, folder), also, shape)


def read_profile(path: Path) -> EngineProfile:
    """Raises UserError naming the file and the key."""
    try:
        return parse_profile(orjson.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "see configs/profiles/README.md") from error
    except ValueError as error:
        raise UserError(f"engine profile {path}: {error}", "see configs/profiles/README.md") from error


def fleets_of(settings: Scenario, profiles: Sequence[Path]) -> list[Fleet]:
    """What is compared on: the scenario's fleet, or that of the profiles given instead. Raises UserError."""
    if not profiles:
        builds = tuple(read_profile(path) for path in settings.builds)
        return [Fleet(settings.profile.stem, read_profile(settings.profile), builds)]
    given = {path.stem: read_profile(path) for path in profiles}
    if len(given) < len(profiles):
        raise UserError("two profiles have the same file name", "answers are told apart by it")
    if settings.builds:
        return fleets(given, read_profile(settings.profile).tp)
    return [Fleet(name, profile) for name, profile in given.items()]


def _compared(
    settings: Scenario, recipe: Recipe, fleet: Fleet, request: Request, progress: Progress
) -> Comparison:
    def say(what: str) -> None:
        shown = f"{settings.name} on {fleet.name}: {what}"
        progress.console.print(shown, markup=False, highlight=False, soft_wrap=True)

    task = progress.add_task(f"{settings.name} {fleet.name}: load level", total=None)
    recipe, left_out = fitting(recipe, fleet.smallest)
    if left_out:
        say(left_out)
    setup = Setup((EngineCosts(fleet.baseline),) * settings.instances, scenarios.objectives_of(settings))
    builds = tuple(EngineCosts(profile) for profile in fleet.builds)
    bench = _divided(settings, scenarios.prepare(settings, recipe, setup, builds, request.seeds))
    if len(bench.cases) > 1 and recipe.same(bench.factor):
        say("at scale 1 every seed has the same arrivals: an interval over them says nothing")
    if fleet.given:
        bench = _sized(settings, fleet, bench, recipe, say)
    mapper = _mapper(request.jobs, progress, f"{settings.name} {fleet.name}")
    progress.remove_task(task)
    policies = scenarios.compare(bench, settings.policies, mapper)
    other = (
        scenarios.compare(scenarios.swapped(bench), settings.policies, mapper) if request.swapped else None
    )
    return Comparison(bench, fleet.name, policies, other)


def _divided(settings: Scenario, bench: Bench) -> Bench:
    """With the pools of the scenario. Their planner has no limit of time: it would not be the same twice."""
    plan, solve = Plan(), partial(solution, limit=inf)
    elastic = (
        Elastic(Seconds(plan.epoch_s), plan.cover_pct / 100.0, solve) if settings.pools.elastic else None
    )
    return replace(bench, terms=replace(bench.terms, border=settings.pools.border, elastic=elastic))


def _sized(
    settings: Scenario, fleet: Fleet, bench: Bench, recipe: Recipe, say: Callable[[str], None]
) -> Bench:
    """With as many of a given baseline as its load asks for, and what was chosen said."""
    built = ", ".join(f"{profile.name} (TP{profile.tp})" for profile in fleet.builds)
    say(f"baseline {fleet.name} (TP{fleet.baseline.tp}); joulegate may build {built}")
    if settings.load.scale is None:
        say(f"{settings.instances} instances as in the scenario: the load is what they sustain")
        return bench
    gpus = settings.instances * read_profile(settings.profile).tp
    start = max(1, gpus // fleet.baseline.tp)
    load = recipe.load(bench.factor, 0)
    count, reasons = fewest(load, bench.terms.setup, MOST * start)
    if count is None:
        say(
            f"with {MOST * start} instances still more than 1 % have {' and '.join(reasons)}: "
            f"the baseline has {start}, the GPUs of the scenario"
        )
    else:
        less = f": with {count - 1} more than 1 % have {reasons[0]}" if reasons else ""
        say(f"{count} instances, the fewest that keep every P99 at maximum clock{less}")
    return scenarios.resized(bench, count or start)


def _mapper(
    jobs: int, progress: Progress, title: str
) -> Callable[[Callable[..., Run], Sequence[tuple[object, ...]]], Iterable[Run]]:
    """Runs a function over arguments in processes; the bar moves with each result."""

    def run(function: Callable[..., Run], work: Sequence[tuple[object, ...]]) -> Iterable[Run]:
        task = progress.add_task(title, total=len(work))
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
        for result in parallel(joblib.delayed(_seldom_swept)(function, arguments) for arguments in work):
            progress.advance(task)
            yield result

    return run


def _seldom_swept(function: Callable[..., Run], arguments: tuple[object, ...]) -> Run:
    """A simulation makes many objects and no cycles: looking for those took a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(SWEEP_EVERY)
    try:
        return function(*arguments)
    finally:
        gc.set_threshold(*before)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
