"""Shell: how many requests a second of CPU the simulated engine serves at a fixed clock.

The arrivals are dealt in turn to a few instances and served to the end, on one core; medians of the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from joulegate.arrivals import Arrival, read_trace
from joulegate.engine_profile import EngineProfile
from simulator.costs import EngineCosts
from simulator.emulator import read_profile
from simulator.engine import Engine
from simulator.jobs import Job

ROOT = Path(__file__).parent.parent
SCALED = ROOT.parent / "shared/data/traces/scaled/s4a_conv.csv.gz"  # where it is at hand
SHIPPED = ROOT / "configs/traces/azure2023_conv_10min.csv"
GOAL = 50_000.0
# tensor-parallel size of the 70B profile, instances that carry 35 requests a second
CASES = ((2, 24), (4, 10), (8, 5))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench engine-core", description=__doc__)
    parser.add_argument("--trace", type=Path, default=SCALED if SCALED.exists() else SHIPPED)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arrivals = read_trace(options.trace)
    rows = [
        measure(
            read_profile(ROOT / f"configs/profiles/h100_llama-3.1-70b_tp{tp}.json"), count, arrivals, options
        )
        for tp, count in CASES
    ]
    show(rows, options.trace)
    if options.json is not None:
        options.json.write_text(json.dumps({"goal_requests_per_s": GOAL, "cases": rows}, indent=2))


def measure(
    profile: EngineProfile, count: int, arrivals: Sequence[Arrival], options: argparse.Namespace
) -> dict[str, object]:
    """Requests a second of CPU at maximum clock, setting up left out."""
    seconds = [serve(profile, count, arrivals) for _ in range(options.rounds)]
    return {
        "profile": profile.name,
        "instances": count,
        "requests": len(arrivals),
        "requests_per_s": len(arrivals) / statistics.median(seconds),
    }


def serve(profile: EngineProfile, count: int, arrivals: Sequence[Arrival]) -> float:
    """CPU seconds it takes to serve every arrival."""
    costs = EngineCosts(profile)
    engines = [Engine(costs, profile.max_clock) for _ in range(count)]
    for index, arrival in enumerate(arrivals):
        job = Job(index, arrival.input_tokens, arrival.output_tokens)
        engines[index % count].submit(job, arrival.at)
    until = arrivals[-1].at + 1e5
    start = time.process_time()
    finished = sum(len(engine.advance(until).finished) for engine in engines)
    seconds = time.process_time() - start
    assert finished == len(arrivals), "requests were lost"
    return seconds


def show(rows: Sequence[dict[str, object]], trace: Path) -> None:
    table = Table("profile", "instances", "requests", "requests/s", title=f"engine core, {trace.name}")
    for row in rows:
        rate = float(str(row["requests_per_s"]))
        table.add_row(str(row["profile"]), str(row["instances"]), str(row["requests"]), f"{rate:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
