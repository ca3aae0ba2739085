"""Shell: the two sides of the demo as processes: emulated fleet, agent with its watchdog, gateway.

Each side is written as the YAML files an operator would write, so that what the demo runs can be run by hand.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from joulegate.errors import UserError
from simulator.children import Child, joulegate
from simulator.fetch import fetch_json

POOLS = {"short": ("SS", "SM", "MS", "MM"), "medium": ("SL", "ML", "LS"), "long": ("LM", "LL")}
MODEL = "llama-3.1-8b"
INSTANCES_PER_POOL = 2
READY_WITHIN = 60.0  # seconds; the processes import at the same time on what may be a small machine
AGENT = ("agent", "-c", "agent.yaml", "--with-watchdog")


@dataclass(slots=True)
class Side:
    """One fleet with its gateway. `folder` holds its settings, its plant and its logs."""

    name: str
    mode: str  # of its gateway's pools
    folder: Path
    profile: Path
    ports: Sequence[int]  # one for each instance, then the gateway's
    processes: dict[str, Child] = field(default_factory=dict)  # by command word

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[-1]}"

    @property
    def engines(self) -> list[str]:
        """Base URLs of the instances."""
        return [f"http://127.0.0.1:{port}" for port in self.ports[:-1]]

    def write(self) -> None:
        """Write fleet.yaml, agent.yaml and gateway.yaml."""
        for name, document in (
            ("fleet", self._fleet()),
            ("agent", self._agent()),
            ("gateway", self._gateway()),
        ):
            with (self.folder / f"{name}.yaml").open("w") as file:
                YAML().dump(document, file)

    async def start(self) -> None:
        """Start all three and wait until the gateway can serve. Raises UserError with the log's end."""
        self._spawn("emulate", "-c", "fleet.yaml")
        await self._until("emulator did not start", f"{self.engines[0]}/emulator/stats")
        self._spawn(*AGENT)
        self._spawn("serve", "-c", "gateway.yaml")
        await self._until("gateway did not start", f"{self.url}/readyz")

    async def proven(self) -> None:
        """Wait until every instance was seen to work on its GPU. Raises UserError as `start` does."""
        await self._until("instances were not found on their GPUs", f"{self.url}/admin/fleet", all_proven)

    def revive(self) -> bool:
        """Start an agent again that its watchdog has ended. Whether it has."""
        agent = self.processes.get(AGENT[0])
        return agent is not None and agent.revive()

    def stop(self) -> None:
        """Gateway first, so that it gives its clocks back; then the rest."""
        for child in reversed(self.processes.values()):
            child.stop()

    def _spawn(self, *words: str) -> None:
        child = Child(joulegate(*words), self.folder / f"{words[0]}.log", self.folder)
        self.processes[words[0]] = child
        child.start()

    async def _until(
        self, problem: str, url: str, enough: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> None:
        """Wait until `url` answers with enough."""
        loop = asyncio.get_running_loop()
        end = loop.time() + READY_WITHIN
        while loop.time() < end:
            self.revive()
            if not all(child.alive for child in self.processes.values()):
                break
            answer = await fetch_json(url)
            if answer is not None and enough(answer):
                return
            await asyncio.sleep(0.1)
        raise UserError(f"the {self.name} {problem}\n{self._last_words()}", status=1)

    def _last_words(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _names(self) -> list[tuple[str, str]]:
        return [(pool, f"{pool}-{i}") for pool in POOLS for i in range(INSTANCES_PER_POOL)]

    def _fleet(self) -> dict[str, Any]:
        names = self._names()
        return {
            "version": 1,
            "seed": 1,  # the same hidden parameters on both sides
            "nodes": [
                {
                    "name": self.name,
                    "plant": str(self.folder / "node.plant"),
                    "gpus": len(names),
                    "profile": str(self.profile),
                }
            ],
            "instances": [
                {
                    "name": name,
                    "port": self.ports[i],
                    "model": MODEL,
                    "profile": str(self.profile),
                    "gpus": [f"{self.name}/{i}"],
                }
                for i, (_, name) in enumerate(names)
            ],
        }

    def _agent(self) -> dict[str, Any]:
        return {
            "version": 1,
            "node": self.name,
            "device": {"kind": "emulated", "plant": str(self.folder / "node.plant")},
            "allow_writes": True,
            "listen": {"unix": str(self.folder / "agent.sock")},
            "watchdog": {"socket": str(self.folder / "watchdog.sock")},
            "state_dir": str(self.folder / "state"),
        }

    def _gateway(self) -> dict[str, Any]:
        numbered = {name: i for i, (_, name) in enumerate(self._names())}
        return {
            "version": 1,
            "listen": {"port": self.ports[-1]},
            "models": [
                {
                    "name": MODEL,
                    "pools": [
                        {
                            "name": pool,
                            "types": list(types),
                            "mode": self.mode,
                            "instances": [
                                self._instance(name, numbered[name])
                                for of, name in self._names()
                                if of == pool
                            ],
                        }
                        for pool, types in POOLS.items()
                    ],
                }
            ],
            "agents": [{"name": self.name, "url": f"unix:{self.folder / 'agent.sock'}"}],
            "control": {"holdback_pct": 0},  # the other fleet is the baseline here
        }

    def _instance(self, name: str, index: int) -> dict[str, Any]:
        return {
            "name": name,
            "url": self.engines[index],
            "emulated": True,
            "agent": self.name,
            "gpus": [f"GPU-{self.name}-{index}"],
            "profile": str(self.profile),
        }


def all_proven(picture: dict[str, Any]) -> bool:
    """Whether every instance of a gateway's fleet was seen to work on its GPU; `picture`: of /admin/fleet."""
    pools = [pool for model in picture["models"] for pool in model["pools"]]
    states = [each["mapping"]["state"] for pool in pools for each in pool["instances"]]
    return bool(states) and all(state == "proven" for state in states)
