"""Shell: what the gateway adds: CPU per request and per streamed chunk, and latency, beside its peers.

All proxies stand over the same fake engines at once and are loaded in turn, round after round, so that
what else the machine does hits all of them; figures are medians over the rounds. CPU is that of a proxy's
whole process tree, from /proc; the engines and the load generator are not counted.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.gateway import gateway, gateway_text
from benchmarks.processes import DidNotStart, cpu_seconds, rss_mb, running, wait_until_ready
from benchmarks.proxies import API_KEY, PEERS, ROOT, Place, Proxy
from simulator.children import free_ports

PEER = "vllm-router"
CONTESTANTS = PEERS | {"joulegate": gateway, "joulegate-text": gateway_text}
GOALS = {
    "request_ratio": 0.9,
    "chunk_ratio": 0.9,
    "request_ratio_text": 1.2,
    "p50_ratio": 1.0,
    "p99_ratio": 1.0,
    "rss_mb": 120.0,
}


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    seconds: float
    connections: int
    streams: int
    chunks: int
    gap_ms: float
    prompt_bytes: int
    instances: int = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round. CPU in microseconds of its process tree, latency in milliseconds."""

    request_us: float
    chunk_us: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    rss_mb: float


class Failed(Exception):
    """A proxy did not answer every request right: its figures would mean nothing."""


def load(proxy: Proxy, plan: Plan, mode: str, *, connections: int, rate: float = 0.0) -> dict[str, float]:
    """One run of the load generator; its report. Raises Failed when anything was lost."""
    argv = [sys.executable, "-m", "benchmarks.load", mode, "--port", str(proxy.port)]
    argv += ["--connections", str(connections), "--duration", str(plan.seconds), "--api-key", API_KEY]
    argv += ["--prompt-bytes", str(plan.prompt_bytes), "--chunks", str(plan.chunks)]
    if proxy.rebuilds:
        argv.append("--rebuilt")
    if rate:
        argv += ["--rate", str(rate)]
    done = subprocess.run(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{proxy.name}, {mode}: {done.stdout[-500:]} {done.stderr[-1500:]}")
    report: dict[str, float] = json.loads(done.stdout)
    return report


def measured(proxy: Proxy, run: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """The report of a run and the CPU seconds it cost the proxy."""
    if proxy.pid is None:
        return run(), 0.0
    before = cpu_seconds(proxy.pid)
    report = run()
    return report, cpu_seconds(proxy.pid) - before


def sample(proxy: Proxy, plan: Plan, rate: float) -> Sample:
    closed, request_cpu = measured(proxy, lambda: load(proxy, plan, "closed", connections=plan.connections))
    stream, chunk_cpu = measured(proxy, lambda: load(proxy, plan, "stream", connections=plan.streams))
    paced = load(proxy, plan, "paced", connections=plan.connections, rate=rate)
    return Sample(
        request_us=request_cpu / closed["requests"] * 1e6,
        chunk_us=chunk_cpu / stream["events"] * 1e6,
        requests_per_s=closed["requests"] / closed["seconds"],
        p50_ms=paced["p50_s"] * 1e3,
        p99_ms=paced["p99_s"] * 1e3,
        rss_mb=0.0 if proxy.pid is None else rss_mb(proxy.pid),
    )


def half_load(proxies: Sequence[Proxy], plan: Plan) -> float:
    """Half of what the peer answers at most (requests per second); without it, of the slowest proxy."""
    peers = [proxy for proxy in proxies if proxy.name == PEER] or proxies
    runs = [load(proxy, plan, "closed", connections=plan.connections) for proxy in peers]
    return min(run["requests"] / run["seconds"] for run in runs) / 2


def start(names: Sequence[str], plan: Plan, folder: Path, stack: ExitStack) -> list[Proxy]:
    engines = free_ports(plan.instances)
    log = folder / "engines.log"
    argv = [sys.executable, "-m", "benchmarks.fake_upstream", "--ports", ",".join(map(str, engines))]
    argv += ["--chunks", str(plan.chunks), "--gap-ms", str(plan.gap_ms)]
    process = stack.enter_context(running(argv, log))
    wait_until_ready(process, engines[-1], "/health", log)
    proxies = []
    for name in names:
        (folder / name).mkdir()
        talk(f"starting {name}")
        proxies.append(CONTESTANTS[name](Place(tuple(engines), folder / name, stack)))
    return proxies


def compare(names: Sequence[str], plan: Plan) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="joulegate-bench-")))
        proxies = start(names, plan, folder, stack)
        rate = half_load(proxies, plan)
        for number in range(plan.rounds):
            for proxy in proxies:
                talk(f"round {number + 1} of {plan.rounds}: {proxy.name}")
                samples[proxy.name].append(sample(proxy, plan, rate))
    return samples


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    rows = [asdict(each) for each in samples]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def ratios(figures: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """The gateway against the peer; None where one of them did not run."""

    def ratio(of: str, what: str) -> float | None:
        if of not in figures or PEER not in figures:
            return None
        return round(figures[of][what] / figures[PEER][what], 3)

    return {
        "request_ratio": ratio("joulegate", "request_us"),
        "chunk_ratio": ratio("joulegate", "chunk_us"),
        "request_ratio_text": ratio("joulegate-text", "request_us"),
        "p50_ratio": ratio("joulegate", "p50_ms"),
        "p99_ratio": ratio("joulegate", "p99_ms"),
        "rss_mb": round(figures["joulegate"]["rss_mb"], 1) if "joulegate" in figures else None,
    }


def show(figures: dict[str, dict[str, float]], against: dict[str, float | None], plan: Plan) -> None:
    table = Table(title=f"CPU of the proxy: {plan.connections} connections; {plan.streams} streams")
    table.add_column("proxy")
    for title in ("us/request", "us/chunk", "requests/s", "p50 ms", "p99 ms", "RSS MB"):
        table.add_column(title, justify="right")
    for name, row in figures.items():
        cells = [f"{row['request_us']:.0f}", f"{row['chunk_us']:.1f}", f"{row['requests_per_s']:.0f}"]
        cells += [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['rss_mb']:.0f}"]
        table.add_row(name, *cells)
    console = Console(width=100)
    console.print(table)
    for name, value in against.items():
        if value is not None:
            verdict = "met" if value <= GOALS[name] else "missed"
            console.print(f"{name} {value:g} (goal <= {GOALS[name]:g}: {verdict})")


def raise_file_limit() -> None:
    """A thousand streams need two sockets each; children inherit the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def talk(message: str) -> None:
    sys.stderr.write(message + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench overhead", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of a round's three loads")
    parser.add_argument("--connections", type=int, default=32, help="of requests that are not streamed")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--gap-ms", type=float, help="between chunks; default: 6,400 chunks/s in all")
    parser.add_argument("--prompt-bytes", type=int, default=1000)
    default = ["direct", "nginx", PEER, "joulegate"]
    parser.add_argument("--proxies", nargs="+", choices=list(CONTESTANTS), default=default)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    plan = Plan(
        rounds=options.rounds,
        seconds=options.seconds,
        connections=options.connections,
        streams=options.streams,
        chunks=100,
        gap_ms=options.gap_ms or max(10.0, options.streams * 1000 / 6400),
        prompt_bytes=options.prompt_bytes,
    )
    raise_file_limit()
    try:
        samples = compare(options.proxies, plan)
    except (DidNotStart, Failed) as error:
        sys.exit(f"error: {error}")
    figures = {name: medians(rows) for name, rows in samples.items()}
    against = ratios(figures)
    show(figures, against, plan)
    if options.json:
        report = {
            **against,
            "figures": figures,
            "samples": {name: [asdict(row) for row in rows] for name, rows in samples.items()},
            "plan": asdict(plan),
            "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg()},
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
