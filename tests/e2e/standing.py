"""A fleet with its agent, watchdog and gateway, and what a test asks of it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from gpu_agent.plant import Plant
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds
from simulator.children import Child, free_ports, joulegate
from simulator.demo_cli import PROFILE
from simulator.demo_site import Side

Edit = Callable[[dict[str, Any]], None]


class Site:
    """A side of the demo with what a test asks of it."""

    def __init__(
        self,
        folder: Path,
        mode: str,
        redis_url: str | None = None,
        edit: Edit | None = None,
    ) -> None:
        """`edit`: what is not as in the demo's gateway.yaml."""
        self.side = Side("e2e", mode, folder, shipped(PROFILE), free_ports(7))
        self.side.write()
        self.redis_url = redis_url
        if edit is not None:
            self.edit(edit)
        if redis_url is not None:
            self._replica(folder / "gateway.yaml", "one", self.side.ports[-1])
        self.plant = start(self.side)
        self.http = httpx.Client(base_url=self.side.url, timeout=10.0)

    def edit(self, edit: Edit) -> None:
        """Change gateway.yaml."""
        edit_yaml(self.side.folder / "gateway.yaml", edit)

    def second_gateway(self) -> tuple[Child, str]:
        """Another replica over the same Redis: its process and its URL."""
        port = free_ports(1)[0]
        path = self.side.folder / "second.yaml"
        path.write_text((self.side.folder / "gateway.yaml").read_text())
        self._replica(path, "two", port)
        second = Child(joulegate("serve", "-c", str(path)), self.side.folder / "second.log")
        second.start()
        self.side.processes["second"] = second
        return second, f"http://127.0.0.1:{port}"

    def _replica(self, path: Path, name: str, port: int) -> None:
        ours = {"name": name, "listen": {"port": port}, "store": {"redis_url": self.redis_url}}
        edit_yaml(path, lambda document: document.update(ours))

    def ceilings(self) -> list[MegaHertz]:
        """What every GPU may clock to now, as the driver would have it."""
        return [gpu.clock_at(Seconds(time.monotonic())) for gpu in self.plant.gpus]

    def tended(self) -> list[MegaHertz]:
        """As `ceilings`; an agent that its watchdog ended, as the machine stood still, is started again."""
        self.side.revive()
        return self.ceilings()

    def fleet(self) -> dict[str, dict[str, object]]:
        """/admin/fleet, instances by name."""
        picture = self.http.get("/admin/fleet").json()
        return {i["name"]: i for m in picture["models"] for p in m["pools"] for i in p["instances"]}

    def restart(self) -> None:
        restart_gateway(self.side, self.http)

    def close(self) -> None:
        self.http.close()
        self.side.stop()


def restart_gateway(side: Side, http: httpx.Client) -> None:
    """Stop it, start it again, and wait until it serves."""
    gateway = side.processes["serve"]
    gateway.stop(30.0)
    gateway.start()
    end = time.monotonic() + 60.0
    while not serves(http):
        assert time.monotonic() < end, "the gateway did not come back"
        time.sleep(0.1)


def start(side: Side) -> Plant:
    """All of it, or nothing; its GPUs."""
    try:
        asyncio.run(side.start())
    except BaseException:
        side.stop()
        raise
    return Plant.open(side.folder / "node.plant")


def serves(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def edit_yaml(path: Path, edit: Edit) -> None:
    yaml = YAML()
    document = yaml.load(path.read_text())
    edit(document)
    with path.open("w") as file:
        yaml.dump(document, file)
