"""Shell: writes through zeusd, reads through NVML: for nodes where a zeusd already has the rights.

NVML lets anybody read, so nothing of what the agent watches is lost; only clock and cap writes go over
zeusd's socket. zeusd counts GPUs by index; they are matched by PCI address.
"""

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import urlencode

from gpu_agent.device import Broken, Denied, Driver, Failed, Inventory, Lost, Reading
from joulegate.units import MegaHertz, Watts

TIMEOUT = 2.0  # seconds


class ZeusdDriver:
    """`Driver` over a reader and zeusd's HTTP API (2026-08). `token`: a JWT with the scope gpu-control."""

    def __init__(self, reader: Driver, path: Path, token: str | None) -> None:
        self._reader = reader
        self._path = path
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._ids: dict[str, int] = {}

    def open(self) -> None:
        self._reader.open()
        by_pci = {_pci(str(gpu["pci_address"])): int(str(gpu["id"])) for gpu in self._discover()}
        found = {gpu.uuid: by_pci.get(_pci(gpu.pci)) for gpu in self._reader.inventory()}
        self._ids = {uuid: index for uuid, index in found.items() if index is not None}

    def close(self) -> None:
        self._reader.close()

    def version(self) -> str:
        return f"{self._reader.version()}, set through zeusd"

    def inventory(self) -> tuple[Inventory, ...]:
        return self._reader.inventory()

    def read(self, uuid: str) -> Reading:
        return self._reader.read(uuid)

    def clock(self, uuid: str) -> MegaHertz:
        return self._reader.clock(uuid)

    def lock(self, uuid: str, low: MegaHertz, high: MegaHertz) -> None:
        self._set(uuid, "set_gpu_locked_clocks", {"min_clock_mhz": low, "max_clock_mhz": high})

    def reset(self, uuid: str) -> None:
        self._set(uuid, "reset_gpu_locked_clocks", {})

    def cap(self, uuid: str) -> Watts:
        return self._reader.cap(uuid)

    def set_cap(self, uuid: str, watts: Watts) -> None:
        self._set(uuid, "set_power_limit", {"power_limit_mw": round(watts * 1000)})

    def _discover(self) -> list[dict[str, object]]:
        status, body = self._ask("GET", "/discover")
        if status != 200:
            raise Broken(f"zeusd: /discover answers {status}")
        gpus = json.loads(body).get("gpus")
        if not isinstance(gpus, list):
            raise Broken("zeusd: /discover names no PCI addresses; its version is too old")
        return gpus

    def _set(self, uuid: str, command: str, values: dict[str, int]) -> None:
        index = self._ids.get(uuid)
        if index is None:
            raise Lost(f"{uuid}: zeusd does not have it")
        # block: only an answer after the driver's is worth anything here
        query = urlencode({"gpu_ids": index, **values, "block": "true"})
        status, body = self._ask("POST", f"/gpu/{command}?{query}")
        if status == 200:
            return
        text = f"{uuid}: zeusd: {command}: {status} {body[:200].decode(errors='replace')}"
        raise (Denied if status in (401, 403, 404) else Failed)(text)

    def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, headers=self._headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"zeusd does not answer at {self._path}: {error}") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("zeusd", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def _pci(address: str) -> str:
    """NVML writes the domain in eight digits, others in four."""
    domain, _, rest = address.lower().partition(":")
    return f"{int(domain or '0', 16):08x}:{rest}"
