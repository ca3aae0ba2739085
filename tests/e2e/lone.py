"""One emulated engine that can be told to turn slow, its agent and a gateway, under steady traffic."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from joulegate.shipped import shipped
from simulator.children import free_ports
from simulator.demo_site import MODEL, Side

PROFILE = shipped("profiles/a100-40g_llama-3.1-8b_tp1.json")
TOP = 1410
NAME = "short-0"


class LoneSite:
    """A demo site cut down to one engine. `profiled`: the gateway is given the engine's profile."""

    def __init__(
        self, folder: Path, tpot_ms: float, *, profiled: bool, refit_interval: float | None = None
    ) -> None:
        self.folder = folder
        self.refit_interval = refit_interval
        self.tpot = tpot_ms / 1e3
        self.side = Side("lone", "enforce", folder, PROFILE, free_ports(7))
        self.side.write()
        self._change("fleet", self._one_engine)
        self._change("gateway", lambda gateway: self._one_instance(gateway, tpot_ms, profiled))
        try:
            asyncio.run(self.side.start())
        except BaseException:
            self.side.stop()
            raise
        self.http = httpx.Client(base_url=self.side.url, timeout=10.0)
        # its GPU is proven while it is idle, which under steady traffic it never is
        eventually(lambda: self.instance()["mapping"]["state"] == "proven", 120.0)

    def _change(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        yaml, path = YAML(), self.folder / f"{name}.yaml"
        document = yaml.load(path.read_text())
        change(document)
        with path.open("w") as file:
            yaml.dump(document, file)

    def _one_engine(self, fleet: dict[str, Any]) -> None:
        fleet["instances"] = [{**fleet["instances"][0], "dev_mode": True}]
        fleet["nodes"][0]["gpus"] = 1

    def _one_instance(self, gateway: dict[str, Any], tpot_ms: float, profiled: bool) -> None:
        instance = gateway["models"][0]["pools"][0]["instances"][0]
        if not profiled:
            del instance["profile"]
        pool = {"name": "all", "mode": "enforce", "instances": [instance]}
        gateway["models"][0]["pools"] = [pool]
        gateway["objectives"] = {
            "ttft_ms": {"short": 1000, "medium": 2000, "long": 4000},
            "tpot_ms": tpot_ms,
            "max_slowdown": None,
        }
        gateway["control"]["refit_interval_s"] = self.refit_interval
        gateway["control"]["proofs_file"] = "proofs.json"

    def turn(self, ratio: float) -> None:
        """Every iteration takes `ratio` times what the profile says from now on."""
        httpx.post(f"{self.side.engines[0]}/emulator/slowdown?ratio={ratio}").raise_for_status()

    def instance(self) -> dict[str, Any]:
        picture = self.http.get("/admin/fleet").json()
        found: dict[str, Any] = picture["models"][0]["pools"][0]["instances"][0]
        return found

    def ended(self) -> list[dict[str, Any]]:
        """Requests that ended well, newest first."""
        records = self.http.get("/admin/requests?last=1000").json()["requests"]
        return [r for r in records if r["actual"]["outcome"] == "ok" and r["actual"]["tpot_s"] is not None]

    def attainment(self, records: list[dict[str, Any]]) -> float:
        """Share of `records` within the TPOT objective."""
        met = [record for record in records if record["actual"]["tpot_s"] <= self.tpot]
        return len(met) / max(1, len(records))

    @contextmanager
    def traffic(self, rate: float, output_tokens: int) -> Iterator[None]:
        """`rate` requests a second of 200 tokens in, until the block ends."""
        trace = self.folder / "steady.csv"
        rows = [f"{i / rate:.3f},200,{output_tokens}" for i in range(int(600 * rate))]
        trace.write_text("\n".join(["timestamp_s,input_tokens,output_tokens", *rows]) + "\n")
        words = [sys.executable, "-m", "joulegate", "replay", str(trace), "--url", self.side.url]
        with (self.folder / "replay.log").open("wb") as log:
            replay = subprocess.Popen([*words, "--model", MODEL], stdout=log, stderr=log)
        try:
            yield
        finally:
            replay.kill()
            replay.wait()

    def close(self) -> None:
        self.http.close()
        self.side.stop()


def eventually(condition: Callable[[], object], limit: float) -> float:
    """Seconds until it held. The limit bounds a run that fails."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + limit, f"never came true: {condition}"
        time.sleep(0.1)
    return time.monotonic() - begun
