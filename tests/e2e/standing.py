"""A fleet with its agent, watchdog and gateway, and what a test asks of it."""

import asyncio
import time
from pathlib import Path

import httpx

from gpu_agent.plant import Plant
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds
from simulator.demo_cli import PROFILE
from simulator.demo_site import Side, free_ports


class Site:
    """A side of the demo with what a test asks of it."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.side = Side("e2e", mode, folder, shipped(PROFILE), free_ports(7))
        self.side.write()
        try:
            asyncio.run(self.side.start())
        except BaseException:
            self.side.stop()
            raise
        self.plant = Plant.open(folder / "node.plant")
        self.http = httpx.Client(base_url=self.side.url, timeout=10.0)

    def ceilings(self) -> list[MegaHertz]:
        """What every GPU may clock to now, as the driver would have it."""
        return [gpu.clock_at(Seconds(time.monotonic())) for gpu in self.plant.gpus]

    def fleet(self) -> dict[str, dict[str, object]]:
        """/admin/fleet, instances by name."""
        picture = self.http.get("/admin/fleet").json()
        return {i["name"]: i for m in picture["models"] for p in m["pools"] for i in p["instances"]}

    def close(self) -> None:
        self.http.close()
        self.side.stop()
