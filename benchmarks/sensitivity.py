"""Shell: where `joulegate simulate`'s own policy stops meeting objectives, and whether it can tell.

One thing at a time is made worse than the laws assume: how well lengths are known, how right the latency
model is, how late a clock arrives, the load and what the laws take it for, the chunk budget, a flash crowd,
requests that go past the gateway, sessions whose earlier turns are in the prefix cache. Each row is compared
with maximum clock on the same engine and the same arrivals, by the counting rule of `joulegate simulate`.
Simulated; the second half of the trace, learned on the first. `told`: for how long the alert
JoulegateObjectiveMissed would have stood.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from control.admission import AdmissionRules
from control.arrivals import Arrivals
from control.governor import GovernorRules
from joulegate.domain import Cuts, LengthPrediction, LengthPredictor, LengthQuery
from joulegate.engine_profile import EngineProfile
from joulegate.settings.load import load
from joulegate.settings.scenario import Scenario
from joulegate.units import Seconds
from predictor.length import HistoryPredictor
from predictor.physics import PhysicsModel
from simulator import scenario as scenarios
from simulator.cluster import Cluster, Knowledge, Laws, Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.perturb import LATENCY
from simulator.recipe import Recipe
from simulator.results import Pooled, Run, saving_pct, why_not
from simulator.score import Ended, Everyone, Scorer
from simulator.simulate import read_profile, recipe_of
from simulator.sites import ONE_POOL
from simulator.streams import Half
from simulator.workload import Load, Stream, held

ROOT = Path(__file__).parent.parent
FLASH = (600.0, 660.0)  # seconds of the scored half in which FLASH_TIMES as much arrives
FLASH_TIMES = 3
BIG_CHUNK = 8192
FURTHER_TURNS = 0.7  # share of prompts that continue a session
LAST_TURN = (32, 256)  # tokens of a prompt that are new then
ALERT_BELOW, ALERT_OVER, ALERT_FOR = (
    0.99,
    300.0,
    600.0,
)  # deploy/prometheus/rules.yml: share, seconds, seconds
LOOK_EVERY = 15.0


@dataclass(frozen=True, slots=True)
class Variation:
    """One thing that is not as the laws assume."""

    name: str
    model_times: float = 1.0  # what the laws are told an iteration takes, over what it takes
    accuracy: float | None = None  # share of output sizes known in advance; None: learned from history
    switch: float | None = None  # seconds until a clock is in force
    told: bool = True  # the laws know how long that is
    load: float = 1.0  # times the load of the scenario
    chunk: int | None = None  # prompt tokens of one iteration
    flash: bool = False
    bypass: int = 0
    rate_times: float = 1.0  # how much arrives as the laws see it, over what does
    sessions: bool = False
    cache_seen: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    saving_pct: float
    attainment_pct: float
    baseline_attainment_pct: float
    slowdown_p50_e2e: float
    told_min: float  # minutes that the alert stands, all seeds together
    baseline_told_min: float
    price_of_bound: float  # joulegate_delay_price_ratio at the end, of the seed where it is highest
    why_not: list[str] = field(default_factory=list)


def variations(peak_pct: float) -> Iterator[Variation]:
    yield Variation("as it is")
    for accuracy in (0.6, 0.8, 1.0):
        yield Variation(f"output size known for {accuracy:.0%}", accuracy=accuracy)
    for times in (0.8, 0.9, 1.1, 1.2):
        yield Variation(f"latency model {times - 1.0:+.0%}", model_times=times)
    for switch in (0.0, 0.1, 0.2, 0.5):
        yield Variation(f"clocks arrive after {switch * 1e3:.0f} ms", switch=switch)
    yield Variation("clocks arrive after 500 ms, not told", switch=0.5, told=False)
    for pct in (25.0, 50.0, 90.0, 100.0):
        yield Variation(f"peak minute at {pct:.0f} % of sustainable", load=pct / peak_pct)
    for times in (0.5, 0.8, 1.25, 2.0):
        yield Variation(f"load taken for {times:.0%} of what it is", rate_times=times)
    yield Variation(f"chunk budget {BIG_CHUNK}", chunk=BIG_CHUNK)
    yield Variation(f"{FLASH_TIMES} times the load for a minute", flash=True)
    yield Variation("a third goes past the gateway", bypass=3)
    yield Variation("sessions, turns in the prefix cache", sessions=True)
    yield Variation("sessions, the gateway does not know of the cache", sessions=True, cache_seen=False)


class Told(LengthPredictor):
    """Knows the size of the next request's output with some probability, else guesses another one."""

    def __init__(self, outputs: Iterator[int], accuracy: float, cuts: Cuts, seed: int) -> None:
        self._outputs, self._accuracy, self._cuts = outputs, accuracy, cuts
        self._rng = np.random.default_rng(seed)

    def predict(self, query: LengthQuery) -> LengthPrediction:
        size = int(self._cuts.output_size(next(self._outputs)))
        if self._rng.random() >= self._accuracy:
            size = int(self._rng.choice([other for other in range(3) if other != size]))
        low, high = ((1.0, self._cuts.output[0]), self._cuts.output, (self._cuts.output[1], 1000.0))[size]
        classes = [0.1, 0.1, 0.1]
        classes[size] = 0.8
        return LengthPrediction(0.5 * (low + high), float(high), (classes[0], classes[1], classes[2]))

    def remaining(self, query: LengthQuery, prediction: LengthPrediction, generated: int) -> LengthPrediction:
        return prediction

    def observe(self, query: LengthQuery, prediction: LengthPrediction, output_tokens: int) -> None:
        """Learns nothing: how often it is right is given."""


class Misjudged(Arrivals):
    """Takes the rate for `times` what it is."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self._times = times

    def rate(self, now: Seconds) -> float:
        return self._times * super().rate(now)


class Misjudging(Cluster):
    """A fleet whose laws misjudge its load."""

    def misjudge(self, times: float) -> "Misjudging":
        for pool in self._steering.pools.values():
            pool.arrivals = Misjudged(times)
        return self


@dataclass(frozen=True, slots=True)
class Ground:
    """A scenario with its load level, worked out once."""

    settings: Scenario
    recipe: Recipe
    profile: EngineProfile
    setup: Setup
    factor: float


def ground(path: Path, folder: Path) -> Ground:
    """`folder` holds its traces as long as it is used."""
    settings = load(path, Scenario)
    recipe, profile = recipe_of(settings, folder), read_profile(settings.profile)
    setup = Setup((EngineCosts(profile),), scenarios.objectives_of(settings))
    bench = scenarios.prepare(settings, recipe, setup, (), 1)
    return Ground(settings, recipe, profile, bench.terms.setup, bench.factor)


def measure(here: Ground, variation: Variation, seeds: range) -> Row:
    profile = here.profile
    if variation.chunk is not None:
        profile = replace(profile, engine=replace(profile.engine, max_num_batched_tokens=variation.chunk))
    if variation.switch is not None:
        profile = replace(profile, actuation=replace(profile.actuation, clock_switch_s=variation.switch))
    costs = EngineCosts(profile)
    costs.model = PhysicsModel(_slower(profile, variation.model_times))
    setup = replace(here.setup, costs=(costs,), bypass=variation.bypass, cache_seen=variation.cache_seen)
    runs: list[Run] = []
    bases: list[Run] = []
    price = told = base_told = 0.0
    for seed in seeds:
        learn, score = halves(here.recipe.load(here.factor * variation.load, seed), variation, seed)
        ours, theirs = Everyone(), Everyone()
        run, of_bound = _steered(setup, variation, learn, score, seed, ours)
        base = run_fixed(score, setup, profile.max_clock, heard(setup, theirs))
        runs.append(run)
        bases.append(base)
        price = max(price, of_bound)
        told += told_minutes(ours.all(), run.span, setup)
        base_told += told_minutes(theirs.all(), base.span, setup)
    policy, baseline = Pooled(tuple(runs)), Pooled(tuple(bases))
    return Row(
        name=variation.name,
        saving_pct=saving_pct(policy, baseline),
        attainment_pct=policy.attainment(),
        baseline_attainment_pct=baseline.attainment(),
        slowdown_p50_e2e=policy.median_e2e() / baseline.median_e2e(),
        told_min=told,
        baseline_told_min=base_told,
        price_of_bound=price,
        why_not=why_not(policy, baseline),
    )


def heard(setup: Setup, everyone: Everyone) -> Scorer:
    return Scorer(setup.objectives, setup.cuts, hear=everyone.hear)


def halves(whole: Stream, variation: Variation, seed: int) -> tuple[Load, Load]:
    """Where it learns, and where it is scored."""
    learn, score = held(Half(whole, second=False)), held(Half(whole, second=True))
    if variation.flash:
        score = crowded(score, seed)
    if variation.sessions:
        learn, score = in_sessions(learn, seed), in_sessions(score, seed + 1)
    return learn, score


def _steered(
    setup: Setup, variation: Variation, learn: Load, score: Load, seed: int, everyone: Everyone
) -> tuple[Run, float]:
    """The run that is scored, told to `everyone`, and the price of delay it ended with, of its bound."""
    switch = setup.costs[0].profile.actuation.clock_switch_s if variation.told else 0.025
    laws = Laws(AdmissionRules(), GovernorRules(switch=Seconds(switch)))
    predictor: LengthPredictor = HistoryPredictor(setup.cuts)
    if variation.accuracy is not None:
        outputs = (int(n) for part in (learn, score) for n in part.output)
        predictor = Told(outputs, variation.accuracy, setup.cuts, seed)
    knowledge = Knowledge(predictor)
    for part, scorer in ((learn, None), (score, heard(setup, everyone))):
        fleet = Misjudging(setup, laws, knowledge, _draws(seed))
        run = (fleet.misjudge(variation.rate_times) if variation.rate_times != 1.0 else fleet).run(
            part, scorer
        )
    return run, knowledge.pools[ONE_POOL].prices.bound_ratio


def told_minutes(everyone: Ended, span: float, setup: Setup) -> float:
    """For how long of a run the alert stands that too few requests meet an objective."""
    ended = everyone.at + everyone.e2e
    size = np.searchsorted(np.array(setup.cuts.input), everyone.input, side="right")
    looks = np.arange(0.0, span, LOOK_EVERY)
    below = np.zeros(len(looks), dtype=bool)
    aims = setup.objectives
    for met in (everyone.tpot <= aims.tpot, everyone.ttft <= np.array(aims.ttft)[size]):
        order = np.argsort(ended)
        at, good = ended[order], np.concatenate([[0], np.cumsum(met[order])])
        first, last = (np.searchsorted(at, looks - back, side="right") for back in (ALERT_OVER, 0.0))
        below |= good[last] - good[first] < ALERT_BELOW * (last - first)
    since, stood = 0, 0
    for yes in below.tolist():
        since = since + 1 if yes else 0
        stood += since * LOOK_EVERY > ALERT_FOR
    return stood * LOOK_EVERY / 60.0


def _draws(seed: int) -> Callable[[int], int]:
    generator = np.random.default_rng(seed)
    return lambda n: int(generator.integers(n))


def _slower(profile: EngineProfile, times: float) -> EngineProfile:
    latency = {name: getattr(profile.latency, name) * times for name in LATENCY}
    return replace(profile, latency=replace(profile.latency, **latency))


def crowded(load: Load, seed: int) -> Load:
    """FLASH_TIMES the arrivals between the FLASH, the further ones spread evenly over it."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero((load.at >= FLASH[0]) & (load.at < FLASH[1]))
    more = np.repeat(rows, FLASH_TIMES - 1)
    at = np.concatenate([load.at, rng.uniform(*FLASH, len(more))])
    order = np.argsort(at, kind="stable")
    everything = np.concatenate([np.arange(len(load)), more])[order]
    return Load(at[order], load.input[everything], load.output[everything], load.span)


def in_sessions(load: Load, seed: int) -> Load:
    """FURTHER_TURNS of the prompts were seen before but for their LAST_TURN."""
    rng = np.random.default_rng(seed)
    further = rng.random(len(load)) < FURTHER_TURNS
    cached = np.where(further, load.input - rng.integers(*LAST_TURN, len(load)), 0)
    return replace(load, cached=np.maximum(0, cached))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench sensitivity", description=__doc__)
    parser.add_argument("--scenario", type=Path, default=ROOT / "configs/scenarios/s1-d.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = ground(options.scenario, Path(folder))
        rows = measured(here, options)
    show(rows, here.settings.name, options.seeds)


def measured(here: Ground, options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for case in track(list(variations(here.settings.load.peak_pct)), console=Console(stderr=True)):
        rows.append(measure(here, case, range(options.seeds)))
        if options.json is not None:
            made = {"scenario": here.settings.name, "seeds": options.seeds, "rows": list(map(asdict, rows))}
            options.json.write_text(json.dumps(made, indent=2))
    return rows


def show(rows: list[Row], name: str, seeds: int) -> None:
    table = Table(title=f"{name}, {seeds} seeds, against maximum clock (simulated)")
    for title in (
        "what is different",
        "saved %",
        "attainment %",
        "median E2E",
        "told, min",
        "price",
        "why it does not count",
    ):
        table.add_column(title, justify="left" if title.startswith("w") else "right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.saving_pct:.1f}",
            f"{row.attainment_pct:.2f} / {row.baseline_attainment_pct:.2f}",
            f"{row.slowdown_p50_e2e:.2f} x",
            f"{row.told_min:.0f} / {row.baseline_told_min:.0f}",
            f"{row.price_of_bound:.2f}",
            "; ".join(row.why_not),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
