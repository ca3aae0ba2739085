"""Shell: what `benchmarks.live` plays to: two emulated engines, one of them behind a gateway with its agent.

Both stand in one process, each on a node of its own, so that what disturbs one disturbs the other.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway import COMMAND
from benchmarks.processes import kept, running, wait_until_ready
from gpu_agent.plant import Plant
from joulegate.domain import Objectives
from joulegate.units import MegaHertz, Seconds
from simulator.children import free_ports
from simulator.demo_site import all_proven

GOVERNED, FREE = "governed", "free"  # the nodes
MODEL = "m"
PROVEN_WITHIN = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Site:
    """Both engines, up, and the GPU behind the gateway proven."""

    gateway: str  # base URLs
    baseline: str
    plants: tuple[Plant, Plant]  # behind the gateway, free
    model: str = MODEL

    def joules(self) -> tuple[float, float]:
        """Of either node since its start."""
        now = Seconds(time.monotonic())
        first, second = (sum(gpu.true_energy_at(now) for gpu in plant.gpus) for plant in self.plants)
        return first, second

    def clock(self) -> MegaHertz:
        """The ceiling in effect on the governed node's first GPU."""
        return self.plants[0].gpus[0].clock_at(Seconds(time.monotonic()))

    def lateness_ms(self) -> float:
        """P99 over all tokens of both engines."""
        return float(fetched(f"{self.baseline}/emulator/stats")["lateness_ms"]["p99"])


@contextmanager
def standing(folder: Path, profile: Path, objectives: Objectives, perturb: bool) -> Iterator[Site]:
    """Raises DidNotStart, with the last words of who did not."""
    gateway, governed, free = free_ports(3)
    written = {
        "fleet": fleet(folder, profile, (governed, free), perturb),
        "agent": agent(folder),
        "gateway": settings(folder, gateway, governed, profile, objectives),
    }
    for name, document in written.items():
        (folder / f"{name}.yaml").write_text(json.dumps(document))  # JSON is YAML
    emulate = [str(COMMAND), "emulate", "-c", str(folder / "fleet.yaml")]
    serve = [str(COMMAND), "serve", "-c", str(folder / "gateway.yaml")]
    tend = [str(COMMAND), "agent", "-c", str(folder / "agent.yaml"), "--with-watchdog"]
    with running(emulate, folder / "emulate.log") as engines:
        wait_until_ready(engines, free, "/health", folder / "emulate.log")
        with kept(tend, folder / "agent.log"), running(serve, folder / "serve.log") as process:
            wait_until_ready(process, gateway, "/readyz", folder / "serve.log")
            url = f"http://127.0.0.1:{gateway}"
            wait_until_proven(url)
            plants = Plant.open(folder / GOVERNED), Plant.open(folder / FREE)
            yield Site(url, f"http://127.0.0.1:{free}", plants)


def wait_until_proven(url: str) -> None:
    """Until clocks may be lowered: the gateway has seen its instance work on its GPU."""
    deadline = time.monotonic() + PROVEN_WITHIN
    while not all_proven(fetched(f"{url}/admin/fleet")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the GPU was not proven within {PROVEN_WITHIN:g} s")
        time.sleep(0.2)


def fetched(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10.0) as reply:
        return json.load(reply)


def fleet(folder: Path, profile: Path, ports: tuple[int, int], perturb: bool) -> dict[str, object]:
    """Without `perturb` the engines are their profile to the last digit."""
    nodes = [
        {"name": name, "plant": str(folder / name), "gpus": 1, "profile": str(profile)}
        for name in (GOVERNED, FREE)
    ]
    instances = [
        {"name": f"{name}-0", "port": port, "model": MODEL, "profile": str(profile), "gpus": [f"{name}/0"]}
        for name, port in zip((GOVERNED, FREE), ports, strict=True)
    ]
    noise = 1.0 if perturb else 0.0
    return {
        "version": 1,
        "seed": 1,
        "perturb": perturb,
        "noise_pct": noise,
        "nodes": nodes,
        "instances": instances,
    }


def agent(folder: Path) -> dict[str, object]:
    return {
        "version": 1,
        "node": GOVERNED,
        "device": {"kind": "emulated", "plant": str(folder / GOVERNED)},
        "allow_writes": True,
        "listen": {"unix": str(folder / "agent.sock")},
        "watchdog": {"socket": str(folder / "watchdog.sock")},
        "state_dir": str(folder / "state"),
    }


def settings(
    folder: Path, port: int, engine: int, profile: Path, objectives: Objectives
) -> dict[str, object]:
    """One pool of one instance; lengths from history alone, as `joulegate simulate` has them."""
    instance = {
        "name": f"{GOVERNED}-0",
        "url": f"http://127.0.0.1:{engine}",
        "emulated": True,
        "agent": GOVERNED,
        "gpus": [f"GPU-{GOVERNED}-0"],
        "profile": str(profile),
    }
    short, medium, long = (1e3 * ttft for ttft in objectives.ttft)
    return {
        "version": 1,
        "listen": {"port": port},
        "objectives": {
            "ttft_ms": {"short": short, "medium": medium, "long": long},
            "tpot_ms": 1e3 * objectives.tpot,
            "e2e_ms": None if objectives.e2e is None else 1e3 * objectives.e2e,
            "max_slowdown": objectives.max_slowdown,
        },
        "models": [{"name": MODEL, "pools": [{"name": "all", "mode": "enforce", "instances": [instance]}]}],
        "agents": [{"name": GOVERNED, "url": f"unix:{folder / 'agent.sock'}"}],
        "predictor": {"prior": "none"},
        "control": {"holdback_pct": 0},  # the other engine is the baseline here
    }
