"""Shell: how fast, and how near the best, the fleet of the next epoch is planned: nine types, three kinds.

As much of a trace's load as the GPUs just carry by the cheapest plan, and 6 % fewer GPUs for the same load,
under each of the pool borders the planner compares. The gap is to a bound: the plan may be better than that.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from control.fleet_plan import Fleet, greedy, total_watts
from control.fleet_solver import solve
from control.floor import Demand
from control.planner import BORDERS, Kind, PlanRules, configurations, grouped
from joulegate.domain import Cuts, RequestType, Size
from joulegate.units import Seconds
from simulator.costs import EngineCosts
from simulator.policies import kind_of
from simulator.simulate import read_profile
from simulator.spool import read_load

ROOT = Path(__file__).parent.parent
SIZES = (2, 4, 8)
TPOT = Seconds(0.1)
RULES = PlanRules()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench planner", description=__doc__)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = [
        kind_of(EngineCosts(read_profile(ROOT / f"configs/profiles/h100_llama-3.1-70b_tp{tp}.json")))
        for tp in SIZES
    ]
    types = types_of(ROOT / "configs/traces/azure2023_conv.csv.gz")
    rows = [
        measure(kinds, grouped(types, border), options.gpus, share) | {"borders": border}
        for border in BORDERS
        for share in (1.0, 0.94)
    ]
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"goal_s": 1.0, "goal_gap": 0.005, "cases": rows}, indent=2))


def types_of(trace: Path) -> dict[RequestType, Demand]:
    """Mean load of each type in a trace."""
    load, cuts = read_load(trace), Cuts()
    inputs = np.searchsorted(np.array(cuts.input), load.input, side="right")
    outputs = np.searchsorted(np.array(cuts.output), load.output, side="right")
    made = {}
    for kind in (RequestType(i, o) for i in Size for o in Size):
        mine = (inputs == kind.input) & (outputs == kind.output)
        tokens = float(load.input[mine].mean())
        made[kind] = Demand(mine.sum() / load.span, tokens, tokens, float(load.output[mine].mean()))
    return made


def measure(kinds: list[Kind], pools: Mapping[str, Demand], gpus: int, share: float) -> dict[str, object]:
    """One plan for as much load as `gpus` GPUs carry at the cheapest plan, with `share` of them."""
    options = {
        name: [one for kind in kinds for one in configurations(kind, load, load.rate, TPOT, RULES)]
        for name, load in pools.items()
    }
    trial = greedy({name: 100.0 * load.rate for name, load in pools.items()}, options, Fleet(10**9))
    assert trial is not None, "some type cannot be served"
    demands = {name: 100.0 * load.rate * gpus / trial.gpus for name, load in pools.items()}
    starts = {kind.name: kind.start * kind.start_watts * kind.tp for kind in kinds}
    running = {kinds[1].name: gpus // (2 * kinds[1].tp)}
    fleet = Fleet(int(share * gpus), running, starts)
    began = time.process_time()
    solved, spent = solve(demands, options, fleet), time.process_time() - began
    quick = greedy(demands, options, fleet)
    plan = solved.plan
    return {
        "gpus": fleet.gpus,
        "seconds": solved.seconds,
        "cpu_seconds": spent,
        "gap": solved.gap,
        "by": solved.by,
        "watts": None if plan is None else total_watts(plan, fleet),
        "greedy_watts": None if quick is None else total_watts(quick, fleet),
    }


def show(rows: list[dict[str, object]]) -> None:
    table = Table(
        "borders", "GPUs", "seconds", "CPU s", "gap %", "by", "kW", "greedy kW", title="fleet planner"
    )
    for row in rows:
        gap = "-" if row["gap"] is None else f"{100.0 * float(str(row['gap'])):.2f}"
        watts = [
            "-" if row[name] is None else f"{float(str(row[name])) / 1e3:.1f}"
            for name in ("watts", "greedy_watts")
        ]
        seconds = [f"{float(str(row[name])):.2f}" for name in ("seconds", "cpu_seconds")]
        table.add_row(str(row["borders"]), str(row["gpus"]), *seconds, gap, str(row["by"]), *watts)
    Console().print(table)


if __name__ == "__main__":
    main()
