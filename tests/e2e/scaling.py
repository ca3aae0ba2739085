"""An emulated fleet whose engines sleep, under a gateway whose plan is in force."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from gpu_agent.plant import Plant
from joulegate.shipped import shipped
from joulegate.units import Seconds
from simulator.demo_cli import PROFILE
from simulator.demo_site import MODEL, Side, free_ports

SLEEP, WAKE = 0.3, 1.0  # seconds
EVERY = ["SS", "SM", "SL", "MS", "MM", "ML", "LS", "LM", "LL"]
NAMES = {"serve": "gateway", "emulate": "fleet"}
Change = Callable[[dict[str, Any]], None]


class ScaleSite:
    """Pools of engines on one node. `pools`: instances and types of each, at most six in all."""

    def __init__(
        self,
        folder: Path,
        pools: dict[str, tuple[int, list[str]]] | None = None,
        plan: dict[str, Any] | None = None,
        change: Change | None = None,
        sleep: float = SLEEP,
    ) -> None:
        """`plan`: what is not as below; `change`: of gateway.yaml; `sleep`: seconds that it takes."""
        self.folder = folder
        self.pools = pools or {"all": (2, EVERY)}
        self.plan = {"mode": "enforce", "epoch_s": 5, "calm_s": 3, "back_off_s": 0.5, **(plan or {})}
        profile = folder / "profile.json"
        document = json.loads(shipped(PROFILE).read_text())
        document["actuation"] |= {"sleep_s": sleep, "wake_s": WAKE}
        profile.write_text(json.dumps(document))
        self.side = Side("scale", "observe", folder, profile, free_ports(7))
        self.side.write()
        self.rewrite("fleet", self._engines_that_sleep)
        self.rewrite("gateway", self._planned)
        if change is not None:
            self.rewrite("gateway", change)
        try:
            asyncio.run(self.side.start())
        except BaseException:
            self.side.stop()
            raise
        self.plant = Plant.open(folder / "node.plant")
        self.http = httpx.Client(base_url=self.side.url, timeout=60.0)

    def rewrite(self, name: str, change: Change) -> None:
        """Change one of the side's files."""
        path = self.folder / f"{name}.yaml"
        document = YAML().load(path.read_text())
        change(document)
        with path.open("w") as file:
            YAML().dump(document, file)

    def _engines_that_sleep(self, fleet: dict[str, Any]) -> None:
        count = sum(number for number, _ in self.pools.values())
        fleet["instances"] = [{**engine, "dev_mode": True} for engine in fleet["instances"][:count]]

    def _planned(self, gateway: dict[str, Any]) -> None:
        listed = [i for pool in gateway["models"][0]["pools"] for i in pool["instances"]]
        made = []
        for name, (number, types) in self.pools.items():
            mine = [{**i, "scale": {"vllm_sleep": {"level": 1}}} for i in listed[:number]]
            listed = listed[number:]
            made.append({"name": name, "types": types, "mode": "observe", "instances": mine})
        gateway["models"][0]["pools"] = made
        gateway["plan"] = self.plan

    def picture(self) -> dict[str, Any]:
        """/admin/plan."""
        found: dict[str, Any] = self.http.get("/admin/plan").json()
        return found

    def instances(self) -> dict[str, dict[str, Any]]:
        """Of /admin/plan, by name."""
        pools = self.picture()["models"][0]["pools"]
        return {i["name"]: {**i, "pool": pool["name"]} for pool in pools for i in pool["instances"]}

    def phases(self) -> list[str]:
        return [each["phase"] for each in self.instances().values()]

    def asleep(self) -> list[bool]:
        """As the engines themselves say."""
        count = sum(number for number, _ in self.pools.values())
        urls = self.side.engines[:count]
        return [httpx.get(f"{url}/is_sleeping").json()["is_sleeping"] for url in urls]

    def ask(self, tokens: int = 5, **headers: str) -> httpx.Response:
        """One request of so many output tokens."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def joules(self) -> float:
        """Of every GPU since the plant began."""
        now = Seconds(time.monotonic())
        return sum(gpu.true_energy_at(now) for gpu in self.plant.gpus)

    def kill(self, word: str) -> None:
        """SIGKILL one of the side's processes."""
        process = self.side.processes[word]
        process.kill()
        process.wait()

    def start(self, word: str) -> None:
        """Start it again as it was."""
        with (self.folder / f"{word}-again.log").open("wb") as log:
            self.side.processes[word] = subprocess.Popen(
                [sys.executable, "-m", "joulegate", word, "-c", str(self.folder / f"{NAMES[word]}.yaml")],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def serves(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        self.http.close()
        self.side.stop()
