"""Shell: does a simulation need more memory when its trace is longer? The peak of a process for each length.

The conversation trace is put end to end as often as the length asks for, written as one CSV, and simulated by
`joulegate simulate` with one engine: its first half is learned from, its second scored. `max-clock` is the
engine at a fixed clock, on the second half; `joulegate` has all laws on both, and the baseline beside it. The
slope is that from the second longest trace to the longest, in bytes for each request more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from joulegate.arrivals import read_trace

ROOT = Path(__file__).parent.parent
TRACE = ROOT / "configs/traces/azure2023_conv.csv.gz"
SCENARIO = ROOT / "configs/scenarios/s2-d.yaml"
LENGTHS = (100_000, 1_000_000, 3_000_000)
POLICIES = ("max-clock", "joulegate")


@dataclass(frozen=True, slots=True)
class Row:
    policy: str
    requests: int
    peak_mb: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=LENGTHS, help="lengths of the trace")
    parser.add_argument("--policy", nargs="+", default=POLICIES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.requests:
            path = Path(folder) / f"{count}.csv"
            write(path, count)
            rows += [measure(policy, path, count) for policy in options.policy]
            path.unlink()
            show(rows)
    if options.json is not None:
        made = {"rows": [asdict(row) for row in rows], "bytes_per_request": slopes(rows)}
        options.json.write_text(json.dumps(made, indent=2))


def write(path: Path, count: int) -> None:
    """The trace end to end until there are so many requests."""
    arrivals = read_trace(TRACE)
    length = arrivals[-1].at + 1.0
    endless = (
        f"{turn * length + one.at:.4f},{one.input_tokens},{one.output_tokens}\n"
        for turn in range(count // len(arrivals) + 1)
        for one in arrivals
    )
    with path.open("w") as file:
        file.write("timestamp_s,input_tokens,output_tokens\n")
        file.writelines(islice(endless, count))


def measure(policy: str, trace: Path, count: int) -> Row:
    """Simulates it in a process of its own. Raises CalledProcessError."""
    options = ("--policy", policy, "--scale", "1", "--seeds", "1", "--no-swapped", "--json")
    words = [sys.executable, "-m", "joulegate", "simulate", str(SCENARIO), "--trace", str(trace), *options]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return Row(policy, count, used.ru_maxrss / 1024.0, used.ru_utime + used.ru_stime)


def slopes(rows: Sequence[Row]) -> dict[str, float]:
    """Bytes for each request more, for every policy of which there are two lengths."""
    found = {}
    for policy in dict.fromkeys(row.policy for row in rows):
        mine = sorted((row for row in rows if row.policy == policy), key=lambda row: row.requests)[-2:]
        if len(mine) == 2:
            more = mine[1].requests - mine[0].requests
            found[policy] = 2.0**20 * (mine[1].peak_mb - mine[0].peak_mb) / more
    return found


def show(rows: Sequence[Row]) -> None:
    table = Table("policy", "requests", "peak MB", "CPU s", title="memory of a simulation")
    for row in rows:
        table.add_row(row.policy, f"{row.requests:,}", f"{row.peak_mb:.1f}", f"{row.cpu_s:.0f}")
    console = Console()
    console.print(table)
    for policy, slope in slopes(rows).items():
        console.print(f"{policy}: {slope:+.2f} bytes a request from the second longest to the longest")


if __name__ == "__main__":
    main()
