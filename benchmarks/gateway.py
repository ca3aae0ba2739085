"""Shell: the gateway as it is measured: all of it on, over two emulated nodes in mode `enforce`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fake_upstream import MODEL
from benchmarks.processes import kept, wait_until_ready
from benchmarks.proxies import API_KEY, ROOT, Place, Proxy
from gpu_agent.plant import GpuSpec, Plant
from joulegate.engine_profile import parse_profile
from simulator.children import free_ports

PROFILE = ROOT / "configs/profiles/h100_llama-3.1-8b_tp1.json"
COMMAND = Path(sys.executable).with_name("joulegate")
SLOTS = 256  # sequences an instance runs at once: never what limits a run


def gateway(place: Place) -> Proxy:
    """Output lengths from history alone."""
    return start(place, "joulegate", "none")


def gateway_text(place: Place) -> Proxy:
    """Output lengths from the prompt's text too."""
    return start(place, "joulegate-text", "auto")


def start(place: Place, name: str, prior: str) -> Proxy:
    nodes = [place.engines[::2], place.engines[1::2]]
    agents = [agent(place, f"node-{number}", len(engines)) for number, engines in enumerate(nodes)]
    instances = [
        instance(f"node-{number}", position, engine)
        for number, engines in enumerate(nodes)
        for position, engine in enumerate(engines)
    ]
    (port,) = free_ports(1)
    file = place.folder / "gateway.yaml"
    # JSON is YAML.
    file.write_text(json.dumps(settings(port, prior, agents, instances), indent=1))
    argv = [str(COMMAND), "serve", "-c", str(file)]
    return Proxy(name, port, place.start(name, argv, "/readyz", port).pid)


def agent(place: Place, node: str, gpus: int) -> dict[str, str]:
    """An agent over a plant of its own, with its watchdog; what the gateway is told of it."""
    clocks = parse_profile(json.loads(PROFILE.read_bytes())).clocks
    plant = place.folder / f"{node}.plant"
    Plant.create(plant, [GpuSpec(uuid=uuid(node, gpu), clocks=clocks) for gpu in range(gpus)])
    (port,) = free_ports(1)
    file = place.folder / f"{node}.yaml"
    told = {
        "version": 1,
        "node": node,
        "device": {"kind": "emulated", "plant": str(plant)},
        "allow_writes": True,
        "listen": {"host": "127.0.0.1", "port": port},
        "watchdog": {"socket": str(place.folder / f"{node}.sock")},
        "state_dir": str(place.folder / f"{node}.state"),
    }
    file.write_text(json.dumps(told, indent=1))
    log = place.folder / f"{node}.log"
    argv = [str(COMMAND), "agent", "-c", str(file), "--with-watchdog"]
    process = place.stack.enter_context(kept(argv, log))
    wait_until_ready(process, port, "/healthz", log)
    return {"name": node, "url": f"http://127.0.0.1:{port}"}


def uuid(node: str, gpu: int) -> str:
    return f"GPU-{node}-{gpu}"


def instance(node: str, position: int, engine: int) -> dict[str, object]:
    return {
        "name": f"{node}-{position}",
        "url": f"http://127.0.0.1:{engine}",
        "agent": node,
        "gpus": [uuid(node, position)],
        "profile": str(PROFILE),
        "slots": SLOTS,
    }


def settings(
    port: int,
    prior: str,
    agents: Sequence[dict[str, str]],
    instances: Sequence[dict[str, object]],
    mode: str = "enforce",
) -> dict[str, object]:
    return {
        "version": 1,
        "listen": {"port": port},
        "auth": {"keys": [{"name": "bench", "key": API_KEY}]},
        "agents": agents,
        "control": {"mapping": "trust"},  # fake engines draw nothing of the plant: they could not be proven
        "predictor": {"prior": prior},
        "usage_injection": "auto",
        "models": [{"name": MODEL, "pools": [{"name": "all", "mode": mode, "instances": instances}]}],
    }
