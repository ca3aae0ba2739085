"""An engine that stands still under its requests: they are answered by another, and nobody is lost."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from joulegate.shipped import shipped
from simulator.children import free_ports
from simulator.demo_cli import PROFILE
from simulator.demo_site import MODEL, Side
from tests.e2e.lone import eventually
from tests.e2e.standing import edit_yaml

COUNT = 60


class Pair:
    """Two engines in one pool, of which one can be made to stand still."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.side = Side("pair", "observe", folder, shipped(PROFILE), free_ports(7))
        self.side.write()
        edit_yaml(folder / "fleet.yaml", self._fleet)
        edit_yaml(folder / "gateway.yaml", self._gateway)
        try:
            asyncio.run(self.side.start())
        except BaseException:
            self.side.stop()
            raise
        self.http = httpx.Client(base_url=self.side.url, timeout=10.0)

    @staticmethod
    def _fleet(fleet: dict[str, Any]) -> None:
        fleet["instances"] = [{**instance, "dev_mode": True} for instance in fleet["instances"][:2]]

    @staticmethod
    def _gateway(gateway: dict[str, Any]) -> None:
        instances = gateway["models"][0]["pools"][0]["instances"]
        gateway["models"][0]["pools"] = [{"name": "all", "mode": "observe", "instances": instances}]
        gateway["retry"] = {"budget_pct": 100}

    def stand_still(self) -> None:
        """From now on an iteration of the first engine takes minutes; its health stays good."""
        httpx.post(f"{self.side.engines[0]}/emulator/slowdown?ratio=100000").raise_for_status()

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/admin/requests?last=1000").json()["requests"]
        return found

    def close(self) -> None:
        self.http.close()
        self.side.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.close()


def test_what_an_engine_that_stands_still_was_sent_is_answered_by_another(pair: Pair) -> None:
    trace = pair.folder / "trace.csv"
    rows = [f"{0.05 * n:.2f},{100 + n},20" for n in range(COUNT)]
    trace.write_text("\n".join(["timestamp_s,input_tokens,output_tokens", *rows]) + "\n")
    command = [sys.executable, "-m", "joulegate", "replay", str(trace), "--url", pair.side.url]
    eventually(lambda: pair.http.get("/readyz").is_success, 30.0)
    pair.stand_still()
    done = subprocess.run([*command, "--model", MODEL, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (found["requests"], found["errors"], found["lost"]) == (COUNT, 0, 0), found
    outcomes = [record["actual"]["outcome"] for record in pair.records()]
    assert outcomes.count("ok") == COUNT
    assert outcomes.count("resteered") > 0
    served = {record["instance"] for record in pair.records() if record["actual"]["outcome"] == "ok"}
    assert served == {"short-1"}
