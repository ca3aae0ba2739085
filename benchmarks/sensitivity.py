"""Shell: where `joulegate simulate`'s own policy stops meeting objectives, and whether it can tell.

One thing at a time is made worse than the laws assume: how well lengths are known, how right the latency
model is, how late a clock arrives, the load, the chunk budget, a flash crowd, requests that go past the
gateway. Each row is compared with maximum clock on the same engine and the same arrivals, by the counting
rule of `joulegate simulate`. Simulated; the second half of the trace, learned on the first.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from control.admission import AdmissionRules
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
from simulator.results import Pooled, Run, saving_pct, why_not
from simulator.simulate import read_profile, recipe_of
from simulator.workload import Load, Recipe, half

ROOT = Path(__file__).parent.parent
FLASH = (600.0, 660.0)  # seconds of the scored half in which FLASH_TIMES as much arrives
FLASH_TIMES = 3
BIG_CHUNK = 8192


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


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    saving_pct: float
    attainment_pct: float
    baseline_attainment_pct: float
    slowdown_p50_e2e: float
    price_times: float  # what delay costs at the end, times its start: the bound is PriceRules.highest
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
    yield Variation(f"chunk budget {BIG_CHUNK}", chunk=BIG_CHUNK)
    yield Variation(f"{FLASH_TIMES} times the load for a minute", flash=True)
    yield Variation("a third goes past the gateway", bypass=3)


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


@dataclass(frozen=True, slots=True)
class Ground:
    """A scenario with its load level, worked out once."""

    settings: Scenario
    recipe: Recipe
    profile: EngineProfile
    setup: Setup
    factor: float


def ground(path: Path) -> Ground:
    settings = load(path, Scenario)
    recipe, profile = recipe_of(settings), read_profile(settings.profile)
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
    setup = replace(here.setup, costs=(costs,), bypass=variation.bypass)
    runs: list[Run] = []
    bases: list[Run] = []
    price = 0.0
    for seed in seeds:
        whole = here.recipe.load(here.factor * variation.load, seed)
        learn, score = half(whole, second=False), half(whole, second=True)
        if variation.flash:
            score = crowded(score, seed)
        run, times = _steered(setup, variation, learn, score, seed)
        runs.append(run)
        bases.append(run_fixed(score, setup, profile.max_clock))
        price = max(price, times)
    policy, baseline = Pooled(tuple(runs), setup.objectives), Pooled(tuple(bases), setup.objectives)
    return Row(
        name=variation.name,
        saving_pct=saving_pct(policy, baseline),
        attainment_pct=policy.attainment(),
        baseline_attainment_pct=baseline.attainment(),
        slowdown_p50_e2e=policy.median_e2e() / baseline.median_e2e(),
        price_times=price,
        why_not=why_not(policy, baseline),
    )


def _steered(setup: Setup, variation: Variation, learn: Load, score: Load, seed: int) -> tuple[Run, float]:
    """The run that is scored, and the price of delay it ended with, times its start."""
    switch = setup.costs[0].profile.actuation.clock_switch_s if variation.told else 0.025
    laws = Laws(AdmissionRules(), GovernorRules(switch=Seconds(switch)))
    predictor: LengthPredictor = HistoryPredictor(setup.cuts)
    if variation.accuracy is not None:
        outputs = (int(n) for part in (learn, score) for n in part.output)
        predictor = Told(outputs, variation.accuracy, setup.cuts, seed)
    knowledge = Knowledge(predictor)
    Cluster(setup, laws, knowledge, _draws(seed)).run(learn)
    run = Cluster(setup, laws, knowledge, _draws(seed)).run(score)
    prices = knowledge.pools["all"].prices
    return run, prices.price / prices.start if prices.start else 0.0


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench sensitivity", description=__doc__)
    parser.add_argument("--scenario", type=Path, default=ROOT / "configs/scenarios/s1-d.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    here = ground(options.scenario)
    console = Console(stderr=True)
    cases = list(variations(here.settings.load.peak_pct))
    rows = [measure(here, case, range(options.seeds)) for case in track(cases, console=console)]
    show(rows, here.settings.name, options.seeds)
    if options.json is not None:
        made = {"scenario": here.settings.name, "seeds": options.seeds, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(made, indent=2))


def show(rows: list[Row], name: str, seeds: int) -> None:
    table = Table(title=f"{name}, {seeds} seeds, against maximum clock (simulated)")
    for title in (
        "what is different",
        "saved %",
        "attainment %",
        "median E2E",
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
            f"{row.price_times:.2f} x",
            "; ".join(row.why_not),
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
