"""Shell: what kinds of instance and pool borders could save at most, by the measure the laws go by.

The scored half of a scenario, seed 0, epoch by epoch, as if every epoch were known in advance, every change
cost nothing and delay had no price. `law`: as many instances of the one best kind as `control.sizing` asks
for. `program`: any mix of kinds on as many GPUs, under each of the pool borders, by the solver. Both
must carry the epoch's busiest ten seconds at maximum clock. `fluid`: any fraction of an instance, each type
alone on the kind that takes the fewest joules for it, no busiest ten seconds. Saved: released, against the
baseline as simulated; not to be had where the GPUs are too few.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from control.fleet_plan import Fleet
from control.fleet_solver import solve
from control.floor import Demand
from control.planner import BORDERS, Kind, PlanRules, configurations, grouped
from control.sizing import Loaded, Terms, best_count, best_kind
from joulegate.domain import Cuts, RequestType, Size
from joulegate.settings.load import load as settings_of
from joulegate.settings.scenario import Scenario
from joulegate.units import Seconds
from simulator.cluster import Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.policies import gpus_of, kind_of, stock_of
from simulator.scenario import objectives_of
from simulator.simulate import read_profile, recipe_of
from simulator.streams import Half
from simulator.workload import Foresight, Load, held

ROOT = Path(__file__).parent.parent
EPOCH = Seconds(300.0)
RULES = PlanRules()


@dataclass(frozen=True, slots=True)
class Row:
    """One way to plan. None: there are too few GPUs."""

    scenario: str
    plan: str
    kw: float | None
    saved_pct: float | None


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench fleet-bound", description=__doc__)
    parser.add_argument("scenarios", nargs="*", type=Path, default=[Path("s4a"), Path("s4b")])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [
        row
        for name in options.scenarios
        for row in measure(settings_of(ROOT / f"configs/scenarios/{name}.yaml", Scenario))
    ]
    table = Table("scenario", "plan", "kW", "saved %", title="fleets, at most")
    for row in rows:
        shown = ["-"] if row.kw is None else [f"{row.kw:.2f}", f"{row.saved_pct:.1f}"]
        table.add_row(row.scenario, row.plan, *shown)
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def measure(scenario: Scenario) -> list[Row]:
    """One row for each way to plan."""
    setup = Setup(
        (EngineCosts(read_profile(scenario.profile)),) * scenario.instances, objectives_of(scenario)
    )
    kinds = [kind_of(EngineCosts(read_profile(path))) for path in scenario.builds]
    stocks = [stock_of(EngineCosts(read_profile(path)), gpus_of(setup)) for path in scenario.builds]
    with tempfile.TemporaryDirectory() as folder:
        load = held(Half(recipe_of(scenario, Path(folder)).load(scenario.load.scale or 1.0, 0), second=True))
    baseline = run_fixed(load, setup, setup.costs[0].profile.max_clock)
    terms = Terms(setup.objectives.tpot)
    chosen = best_kind(stocks, Foresight(load).mean(0.0, load.span), terms)
    assert chosen is not None, "no kind carries the mean load"
    watts = dict[str, list[float | None]]()
    for epoch in epochs(load):
        types, whole = types_of(epoch), Foresight(epoch)
        mean = whole.mean(0.0, EPOCH)
        growth = whole.most(0.0, EPOCH, mean) / mean.rate
        one = Loaded((chosen[0],), mean, terms)
        watts.setdefault("law", []).append(one.watts(best_count(one, growth * mean.rate)))
        for border in BORDERS:
            planned = program(kinds, grouped(types, border), growth, gpus_of(setup), terms.tpot)
            watts.setdefault(f"program, {border}", []).append(planned)
        watts.setdefault("fluid", []).append(fluid(kinds, types, terms.tpot))
    base = baseline.joules_released / load.span
    return [_row(scenario.name, name, each, base) for name, each in watts.items()]


def _row(scenario: str, plan: str, watts: list[float | None], base: float) -> Row:
    known = [each for each in watts if each is not None]
    if len(known) < len(watts):
        return Row(scenario, plan, None, None)
    mean = float(np.mean(known))
    return Row(scenario, plan, mean / 1e3, 100.0 * (1.0 - mean / base))


def epochs(load: Load) -> list[Load]:
    """The load cut into epochs, each from its own zero; what is left over at the end is left out."""
    found = []
    for n in range(int(load.span // EPOCH)):
        rows = (load.at >= n * EPOCH) & (load.at < (n + 1) * EPOCH)
        found.append(Load(load.at[rows] - n * EPOCH, load.input[rows], load.output[rows], EPOCH))
    return found


def types_of(load: Load) -> dict[RequestType, Demand]:
    """Mean load of each type that comes."""
    cuts = Cuts()
    inputs = np.searchsorted(np.array(cuts.input), load.input, side="right")
    outputs = np.searchsorted(np.array(cuts.output), load.output, side="right")
    made = {}
    for kind in (RequestType(i, o) for i in Size for o in Size):
        mine = (inputs == kind.input) & (outputs == kind.output)
        if mine.any():
            tokens = float(load.input[mine].mean())
            made[kind] = Demand(mine.sum() / load.span, tokens, tokens, float(load.output[mine].mean()))
    return made


def program(
    kinds: list[Kind], pools: Mapping[str, Demand], growth: float, gpus: int, tpot: Seconds
) -> float | None:
    """Watts of the best mix; None where so many GPUs are too few."""
    expected = {name: growth * each.rate for name, each in pools.items()}
    options = {
        name: [one for kind in kinds for one in configurations(kind, each, expected[name], tpot, RULES)]
        for name, each in pools.items()
    }
    plan = solve(expected, options, Fleet(gpus)).plan
    return None if plan is None else plan.watts


def fluid(kinds: list[Kind], types: Mapping[RequestType, Demand], tpot: Seconds) -> float:
    """Watts with every type on fractions of instances, each at the load where a request takes the least."""
    return sum(
        each.rate
        * min(
            one.watts / one.load
            for kind in kinds
            for one in configurations(kind, each, each.rate, tpot, RULES)
        )
        for each in types.values()
    )


if __name__ == "__main__":
    main()
