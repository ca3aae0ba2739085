"""Shell: does the gateway's memory stay flat over many requests and cancelled streams, and does nothing leak?

Rounds of whole requests, streams and streams that their clients leave; after each the resident memory of the
gateway, and of the children that it may have at that moment (one that learns an engine anew, for seconds).
The slope is the gateway's, fitted to the second half: the first fills caches and learned tables.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.overhead import Failed, Plan, load, raise_file_limit, start, talk
from benchmarks.processes import DidNotStart, open_files, own_rss_mb, rss_mb
from benchmarks.proxies import Proxy

GOAL_MB_PER_MILLION = 5.0


@dataclass(frozen=True, slots=True)
class Mark:
    """After a round: how much was done so far, and what the gateway holds."""

    requests: int
    cancellations: int
    rss_mb: float
    children_mb: float
    open_files: int


def rounds(proxy: Proxy, plan: Plan, requests: int, cancellations: int) -> list[Mark]:
    assert proxy.pid is not None
    marks: list[Mark] = []
    done = left = 0
    while done < requests or left < cancellations:
        whole = load(proxy, plan, "closed", connections=plan.connections)["requests"]
        brief = replace(plan, seconds=0.5)
        streams = load(proxy, brief, "stream", connections=plan.streams)["requests"]
        if left < cancellations:
            left += int(load(proxy, brief, "cancel", connections=16)["requests"])
        done += int(whole + streams)
        own = own_rss_mb(proxy.pid)
        mark = Mark(done, left, own, rss_mb(proxy.pid) - own, open_files(proxy.pid))
        marks.append(mark)
        talk(
            f"{done} requests, {left} cancelled, {mark.rss_mb:.1f} MB, "
            f"children {mark.children_mb:.1f} MB, {mark.open_files} files"
        )
    return marks


def slope(marks: list[Mark]) -> float | None:
    """MB per million requests over the second half; None while that is fewer than three rounds."""
    late = marks[len(marks) // 2 :]
    if len(late) < 3:
        return None
    line = statistics.linear_regression([m.requests / 1e6 for m in late], [m.rss_mb for m in late])
    return line.slope


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench soak", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--cancellations", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of whole requests in a round")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    plan = Plan(0, options.seconds, connections=32, streams=64, chunks=20, gap_ms=5.0, prompt_bytes=1000)
    raise_file_limit()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulegate-soak-")))
        try:
            (proxy,) = start(["joulegate"], plan, folder, stack)
            marks = rounds(proxy, plan, options.requests, options.cancellations)
        except (DidNotStart, Failed) as error:
            sys.exit(f"error: {error}")
    rise = slope(marks)
    last = marks[-1]
    report = {
        "requests": last.requests,
        "cancellations": last.cancellations,
        "rss_mb": round(last.rss_mb, 1),
        "children_mb_most": round(max(mark.children_mb for mark in marks), 1),
        "rss_mb_per_million_requests": None if rise is None else round(rise, 2),
        "open_files": last.open_files,
        "marks": [asdict(mark) for mark in marks],
    }
    sys.stdout.write(json.dumps({key: value for key, value in report.items() if key != "marks"}) + "\n")
    if rise is not None:
        verdict = "met" if rise <= GOAL_MB_PER_MILLION else "missed"
        sys.stdout.write(f"goal: at most {GOAL_MB_PER_MILLION:g} MB per million requests: {verdict}\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
