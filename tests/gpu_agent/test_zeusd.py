"""zeusd writes, NVML reads: the agent has no right of its own."""

import json
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.agent_host import AgentHost, end
from gpu_agent.plant import Plant
from joulegate.units import MegaHertz, Seconds, Watts

FAKE = Path(__file__).parents[1] / "fakes" / "nvml" / "nvml.c"
TOKEN = "a-jwt"


class Zeusd(socketserver.ThreadingUnixStreamServer):
    """zeusd's routes that set GPUs, over a plant. Its ids run against the plant's order."""

    daemon_threads = True

    def __init__(self, path: Path, plant: Plant) -> None:
        super().__init__(str(path), Routes)
        self.by_id = dict(enumerate(reversed(plant.gpus)))


class Routes(BaseHTTPRequestHandler):
    server: Zeusd

    def do_GET(self) -> None:
        gpus = [
            {"id": index, "name": gpu.name, "pci_address": gpu.pci.removeprefix("0000")}
            for index, gpu in self.server.by_id.items()
        ]
        self._reply(200, {"gpus": gpus} if self.path == "/discover" else {})

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            return self._reply(401, {"errors": {query["gpu_ids"]: "no token"}})
        if query.get("block") != "true":
            return self._reply(400, {"errors": {"": "a test wants blocking calls"}})
        gpu, now = self.server.by_id[int(query["gpu_ids"])], Seconds(time.monotonic())
        match address.path:
            case "/gpu/set_gpu_locked_clocks":
                low, high = int(query["min_clock_mhz"]), int(query["max_clock_mhz"])
                gpu.lock(MegaHertz(low), MegaHertz(high), now)
            case "/gpu/reset_gpu_locked_clocks":
                gpu.reset(now)
            case "/gpu/set_power_limit":
                gpu.cap = Watts(int(query["power_limit_mw"]) / 1000.0)
            case _:
                return self._reply(404, {})
        return self._reply(200, {})

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""

    def address_string(self) -> str:
        return "unix"

    def _reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    """Two GPUs that refuse every write made through NVML."""
    device = {"kind": "zeusd", "socket": str(tmp_path / "zeusd.sock"), "token": TOKEN}
    host = AgentHost(tmp_path / "node", 2, {"device": device})
    for gpu in host.plant.gpus:
        gpu.deny_writes()
    yield host
    host.stop()


@pytest.fixture
def zeusd(host: AgentHost, tmp_path: Path) -> Iterator[Zeusd]:
    with Zeusd(tmp_path / "zeusd.sock", host.plant) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def environment(host: AgentHost, tmp_path: Path) -> dict[str, str]:
    library = str(tmp_path / "libnvidia-ml.so.1")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, str(FAKE), "-lm"], check=True)
    return {"LD_LIBRARY_PATH": str(tmp_path), "JOULEGATE_PLANT": str(host.plant_file)}


def test_an_agent_over_zeusd_locks_the_right_gpu_and_its_watchdog_frees_it(
    host: AgentHost, zeusd: Zeusd, tmp_path: Path
) -> None:
    settings = environment(host, tmp_path)
    host.start_watchdog(settings)
    host.start_agent(environment=settings)
    host.wait_ready()

    def locked() -> bool:
        host.post("/v1/sync", {"holder": "test", "ttl_s": 1.0, "targets": {"GPU-0": 900}})
        return host.ceilings() == [900, None]

    host.wait_for(locked, "lock")
    end(host.agent, signal.SIGKILL)
    host.wait_for(lambda: host.ceilings() == [None, None], "restored clocks", 20.0)
    assert zeusd.by_id[1].uuid == "GPU-0"


def test_caps_go_the_same_way(host: AgentHost, zeusd: Zeusd, tmp_path: Path) -> None:
    host.start_agent("--with-watchdog", environment=environment(host, tmp_path))
    host.wait_ready()
    status, _ = host.post("/v1/caps", {"holder": "test", "epoch": 1, "caps": {"GPU-1": 450.0}})
    assert status == 200
    assert [gpu.cap for gpu in host.plant.gpus] == [700.0, 450.0]
    end(host.agent, signal.SIGTERM)


def test_without_a_zeusd_the_agent_says_so(host: AgentHost, tmp_path: Path) -> None:
    host.start_agent(environment=environment(host, tmp_path))
    assert host.agent is not None
    assert host.agent.wait(timeout=30) == 2
    assert "zeusd does not answer" in host.logged()
