import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator.children import free_ports

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
MODEL = "test/model-8b"


@dataclass(frozen=True)
class RunningFleet:
    """An emulator of its own process: two vLLM engines and one TGI."""

    process: subprocess.Popen[str]
    urls: dict[str, str]
    plant: Path


def fleet_yaml(folder: Path, **vllm: Any) -> Path:
    """An exact (no noise, not perturbed) fleet; `vllm` overrides settings of the engine called small."""
    ports = free_ports(3)
    document = json.loads((PROFILES / "h100_llama-3.1-8b_tp1.json").read_text())
    document["actuation"] |= {"sleep_s": 0.05, "wake_s": 0.05}
    profile = str(folder / "profile.json")
    Path(profile).write_text(json.dumps(document))
    engines: list[dict[str, Any]] = [
        {"name": "large", "engine": "vllm", "max_model_len": 8192, "dev_mode": True},
        {"name": "small", "engine": "vllm", "max_model_len": 2048, **vllm},
        {"name": "tgi", "engine": "tgi", "max_model_len": 4096, "max_concurrent_requests": 4},
    ]
    for index, engine in enumerate(engines):
        engine |= {"port": ports[index], "model": MODEL, "profile": profile, "gpus": [f"node-1/{index}"]}
    document = {
        "version": 1,
        "seed": 3,
        "perturb": False,
        "noise_pct": 0,
        "nodes": [{"name": "node-1", "plant": str(folder / "plant"), "gpus": 3, "profile": profile}],
        "instances": engines,
    }
    path = folder / "fleet.yaml"
    path.write_text(json.dumps(document))  # YAML 1.2 is a superset of JSON
    return path


@contextmanager
def running(config: Path) -> Iterator[RunningFleet]:
    command = [sys.executable, "-c", "from joulegate.cli import main; main()"]
    with subprocess.Popen(
        [*command, "emulate", "-c", str(config), "--json-ready"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        urls = {instance["name"]: instance["url"] for instance in ready["instances"]}
        yield RunningFleet(process, urls, Path(ready["nodes"][0]["plant"]))
        process.terminate()
        assert process.wait(10) == 0


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with running(fleet_yaml(folder, max_num_seqs=2, max_num_queued_reqs=1)) as started:
        yield started
