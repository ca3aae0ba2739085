"""An emulated fleet whose engines sleep, under a gateway whose plan is in force."""

import json
import time
from pathlib import Path
from typing import Any

import httpx

from joulegate.shipped import shipped
from joulegate.units import Seconds
from simulator.children import free_ports
from simulator.demo_cli import PROFILE
from simulator.demo_site import MODEL, Side
from tests.e2e.standing import Edit, edit_yaml, serves, start

SLEEP, WAKE = 0.3, 1.0  # seconds
EVERY = ["SS", "SM", "SL", "MS", "MM", "ML", "LS", "LM", "LL"]


class ScaleSite:
    """Pools of engines on one node. `pools`: instances and types of each, at most six in all."""

    def __init__(
        self,
        folder: Path,
        pools: dict[str, tuple[int, list[str]]] | None = None,
        plan: dict[str, Any] | None = None,
        change: Edit | None = None,
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
        self.plant = start(self.side)
        self.http = httpx.Client(base_url=self.side.url, timeout=60.0)

    def rewrite(self, name: str, change: Edit) -> None:
        """Edit one of the side's files."""
        edit_yaml(self.folder / f"{name}.yaml", change)

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
        self.side.processes[word].kill()

    def start(self, word: str) -> None:
        """Start it again as it was."""
        self.side.processes[word].start()

    def serves(self) -> bool:
        return serves(self.http)

    def close(self) -> None:
        self.http.close()
        self.side.stop()
