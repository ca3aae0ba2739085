"""Shell: clocks after every kind of death: agents, watchdogs and lease holders killed at random moments.

Sixteen emulated nodes side by side, each the real agent and watchdog as processes and a stand-in lease holder
that moves ceilings about. A round waits until clocks are locked and a random moment longer, lets one thing
happen, and then looks at the driver: which GPUs are still locked, how long after the end of the lease the
last one was freed, and whether any is locked again once what was stopped goes on.

The lease ends `ttl` after the last sync that the agent granted, or may have granted: one that was sent before
the event and was never answered counts.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agent_host import AgentHost, end

TTL = 1.0
PATIENCE = 20.0  # seconds after the lease's end until a GPU counts as left locked
WATCH = 0.4  # seconds a freed node is watched for a lock that comes back
GPUS = 2
NODES = 16
STARTS = 2  # nodes that start processes at a time: Python's imports are no part of the question


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    left_locked: int
    relocked: int
    restore: float  # seconds past the end of the lease; negative: before it


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that happens, and what goes on again afterwards."""

    name: str
    happen: Callable[[AgentHost, random.Random], None]
    resume: Callable[[AgentHost], None]
    starts: bool = False  # processes, so it takes its turn with the nodes that do


def agent_kill(host: AgentHost, _: random.Random) -> None:
    end(host.agent, signal.SIGKILL)


def agent_stop(host: AgentHost, _: random.Random) -> None:
    send(host.agent, signal.SIGSTOP)


def agent_pause(host: AgentHost, rng: random.Random) -> None:
    """The agent sleeps through its deadline or nearly so, with nobody renewing."""
    send(host.agent, signal.SIGSTOP)
    end(host.holder, signal.SIGKILL)
    time.sleep(rng.uniform(0.2, TTL + 0.6))
    send(host.agent, signal.SIGCONT)


def gateway_kill(host: AgentHost, _: random.Random) -> None:
    end(host.holder, signal.SIGKILL)


def gateway_stop(host: AgentHost, _: random.Random) -> None:
    send(host.holder, signal.SIGSTOP)


def both_kill(host: AgentHost, rng: random.Random) -> None:
    agent_kill(host, rng)
    gateway_kill(host, rng)


def both_stop(host: AgentHost, rng: random.Random) -> None:
    agent_stop(host, rng)
    gateway_stop(host, rng)


def agent_and_watchdog_kill(host: AgentHost, rng: random.Random) -> None:
    """Both at once, and a service manager that starts them again, in either order."""
    send(host.watchdog, signal.SIGKILL)
    send(host.agent, signal.SIGKILL)
    end(host.watchdog, signal.SIGKILL)
    end(host.agent, signal.SIGKILL)
    starts: list[Callable[[], None]] = [host.start_agent, host.start_watchdog]
    rng.shuffle(starts)
    for start in starts:
        start()


def network_cut(host: AgentHost, _: random.Random) -> None:
    send(host.holder, signal.SIGUSR1)


def disk_full(host: AgentHost, rng: random.Random) -> None:
    """No file of the agent can grow any more (RLIMIT_FSIZE); then its holder dies, and another asks."""
    assert host.agent is not None
    resource.prlimit(host.agent.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    time.sleep(rng.uniform(0.0, 0.5))
    end(host.holder, signal.SIGKILL)


def ask_on_a_full_disk(host: AgentHost) -> None:
    """With the old lease over, a new one must be refused, or else lock nothing."""
    status, reply = host.post("/v1/sync", {"holder": "next", "ttl_s": TTL, "targets": {"GPU-0": 600}})
    if status != 503:
        raise AssertionError(f"a lease without a disk: {status} {reply}")
    assert host.agent is not None
    resource.prlimit(host.agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def resume_all(host: AgentHost) -> None:
    send(host.agent, signal.SIGCONT)
    send(host.holder, signal.SIGCONT)


KINDS = (
    Kind("agent killed", agent_kill, resume_all),
    Kind("agent stopped", agent_stop, resume_all),
    Kind("agent paused", agent_pause, resume_all),
    Kind("gateway killed", gateway_kill, resume_all),
    Kind("gateway stopped", gateway_stop, resume_all),
    Kind("both killed", both_kill, resume_all),
    Kind("both stopped", both_stop, resume_all),
    Kind("agent and watchdog killed", agent_and_watchdog_kill, resume_all, starts=True),
    Kind("network cut", network_cut, resume_all),
    Kind("disk full", disk_full, ask_on_a_full_disk),
)


class Bench:
    """Takes rounds from `plan` on one node after another thread's; outcomes are gathered in `run`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._starting = threading.Semaphore(STARTS)

    def node(self, index: int, plan: Iterator[tuple[int, Kind]]) -> list[Outcome]:
        host = AgentHost(self._folder / f"node-{index}", GPUS, {})
        outcomes = []
        try:
            for number, kind in plan:
                outcomes.append(self._round(host, kind, random.Random(self._seed * 1_000_003 + number)))
                say(f"\r{number + 1:>5}  {kind.name:<28}")
        finally:
            host.stop()
        return outcomes

    def _round(self, host: AgentHost, kind: Kind, rng: random.Random) -> Outcome:
        with self._starting:
            self._prepare(host)
        host.wait_for(lambda: locked(host), "locked clocks")
        time.sleep(rng.uniform(0.0, 0.6))
        host.wait_for(lambda: locked(host), "locked clocks")
        with self._starting if kind.starts else contextlib.nullcontext():
            event = time.monotonic()
            kind.happen(host, rng)
            sent, granted = host.last_sent()
            expiry = max(granted, sent if sent < event else 0.0) + TTL
            free = wait_until_free(host, expiry + PATIENCE)
        restore = host.freed_at() - expiry
        left = 0 if free else sum(ceiling is not None for ceiling in host.ceilings())
        kind.resume(host)
        return Outcome(kind.name, left, watch(host) if free else 0, restore)

    def _prepare(self, host: AgentHost) -> None:
        """Whatever died is started again, as a service manager would; a new holder takes the lease."""
        end(host.holder, signal.SIGKILL)
        if host.watchdog is None or host.watchdog.poll() is not None:
            host.start_watchdog()
        if host.agent is None or host.agent.poll() is not None:
            host.start_agent()
        host.wait_ready()
        host.start_holder(TTL)


def send(process: subprocess.Popen[bytes] | None, number: int) -> None:
    """A signal to one process of ours that may have died already."""
    assert process is not None
    process.send_signal(number)


def locked(host: AgentHost) -> bool:
    """Whether all GPUs are. A holder that renewed too late has left: another takes its place."""
    assert host.holder is not None
    if host.holder.poll() is not None:
        host.start_holder(TTL)
    return None not in host.ceilings()


def wait_until_free(host: AgentHost, deadline: float) -> bool:
    while any(ceiling is not None for ceiling in host.ceilings()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def watch(host: AgentHost) -> int:
    """GPUs that are locked again within WATCH seconds."""
    until, relocked = time.monotonic() + WATCH, set()
    while time.monotonic() < until:
        relocked |= {i for i, ceiling in enumerate(host.ceilings()) if ceiling is not None}
        time.sleep(0.01)
    return len(relocked)


class StallProbe(threading.Thread):
    """How long this machine kept a thread waiting that wanted to run: the noise in the figures."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.worst = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            before = time.monotonic()
            time.sleep(0.005)
            self.worst = max(self.worst, time.monotonic() - before - 0.005)


def run(
    kinds: Sequence[Kind], rounds: int, nodes: int, seed: int, stop: threading.Event | None = None
) -> tuple[list[Outcome], float]:
    """The kinds in turn, `rounds` in all or until `stop`; (outcomes, worst stall in seconds)."""
    numbered = enumerate(itertools.islice(itertools.cycle(kinds), rounds))
    lock = threading.Lock()

    def plan() -> Iterator[tuple[int, Kind]]:
        while stop is None or not stop.is_set():
            with lock:
                item = next(numbered, None)
            if item is None:
                return
            yield item

    probe = StallProbe()
    probe.start()
    with tempfile.TemporaryDirectory(prefix="joulegate-kills-") as folder:
        bench = Bench(Path(folder), seed)
        with ThreadPoolExecutor(nodes) as pool:
            futures = [pool.submit(bench.node, index, plan()) for index in range(min(nodes, rounds))]
            outcomes = [outcome for future in futures for outcome in future.result()]
    probe.done.set()
    say("\r" + " " * 40 + "\r")
    return outcomes, probe.worst


def report(outcomes: Sequence[Outcome]) -> dict[str, object]:
    restores = [outcome.restore for outcome in outcomes]
    return {
        "rounds": len(outcomes),
        "left_locked": sum(outcome.left_locked for outcome in outcomes),
        "relocked_after_resume": sum(outcome.relocked for outcome in outcomes),
        "worst_restore_s": round(max(restores), 3),
        "median_restore_s": round(statistics.median(restores), 3),
    }


def show(table: dict[str, dict[str, object]]) -> None:
    head = ("kind", "rounds", "left locked", "relocked", "worst restore s", "median s")
    sys.stdout.write(f"{head[0]:<28}" + "".join(f"{word:>17}" for word in head[1:]) + "\n")
    for name, row in table.items():
        sys.stdout.write(f"{name:<28}" + "".join(f"{value!s:>17}" for value in row.values()) + "\n")
    sys.stdout.write("restore: seconds from the end of the lease to the last clock given back\n")


def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Clocks after deaths of agent, watchdog and gateway.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument(
        "--kind", action="append", choices=[kind.name for kind in KINDS], help="only this one"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.kind or kind.name in options.kind]
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda _signal, _frame: stop.set())  # what is done by then is reported
    outcomes, stall = run(kinds, options.rounds, options.nodes, options.seed, stop)
    by_kind = {kind.name: [o for o in outcomes if o.kind == kind.name] for kind in kinds}
    table = {name: report(some) for name, some in by_kind.items() if some}
    whole = report(outcomes)
    show(table | {"all": whole})
    sys.stdout.write(f"seed {options.seed}; this machine's worst stall was {stall:.3f} s\n")
    if options.json:
        figures = whole | {"worst_stall_s": round(stall, 3), "seed": options.seed, "by_kind": table}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if whole["left_locked"] or whole["relocked_after_resume"]:
        sys.exit("error: clocks were left locked")


if __name__ == "__main__":
    main()
