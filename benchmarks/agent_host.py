"""Shell: one emulated GPU node for benchmarks and tests: the real agent and watchdog as processes."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from benchmarks.lease_holder import UnixConnection, call
from gpu_agent.plant import GpuSpec, Plant
from joulegate.units import MegaHertz, Seconds

CLOCKS = tuple(MegaHertz(clock) for clock in range(210, 1981, 15))
START_SECONDS = 60.0
NICE = {"agent": -10, "watchdog": -20, "holder": 0}
SHARE = {"agent": -7, "watchdog": -10}  # the units' CPUWeight, in nice levels of the kernel's session groups


class AgentHost:
    """A folder with a plant, an agent.yaml and the processes over it. `stop` ends them all."""

    def __init__(self, folder: Path, gpus: int, settings: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        # A driver is no file: on a disk, writes to its memory would wait for the disk's journal.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._memory = tempfile.TemporaryDirectory(prefix="joulegate-plant-", dir=memory)
        self.plant_file = Path(self._memory.name) / "plant"
        self.plant = Plant.create(
            self.plant_file,
            [
                GpuSpec(uuid=f"GPU-{i}", pci=f"00000000:{i:02X}:00.0", clocks=CLOCKS, settle=Seconds(0.005))
                for i in range(gpus)
            ],
        )
        self.uuids = [gpu.uuid for gpu in self.plant.gpus]
        self.agent: subprocess.Popen[bytes] | None = None
        self.watchdog: subprocess.Popen[bytes] | None = None
        self.holder: subprocess.Popen[bytes] | None = None
        self.diary = folder / "diary"
        self.diary.write_bytes(bytes(16))
        self.log = (folder / "log").open("ab")
        document = {
            "version": 1,
            "node": folder.name,
            "device": {"kind": "emulated", "plant": str(self.plant_file)},
            "allow_writes": True,
            "listen": {"unix": str(folder / "agent.sock")},
            "watchdog": {"socket": str(folder / "watchdog.sock")},
            "state_dir": str(folder / "state"),
        }
        # JSON is YAML
        (folder / "agent.yaml").write_text(json.dumps(document | settings))

    def start_watchdog(self, environment: dict[str, str] | None = None) -> None:
        self.watchdog = self._start("watchdog", environment)

    def start_agent(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self.agent = self._start("agent", environment, *options)

    def start_holder(self, ttl: float) -> None:
        self.diary.write_bytes(bytes(16))
        script = Path(__file__).with_name("lease_holder.py")
        command = [
            sys.executable,
            "-S",
            str(script),
            str(self.folder / "agent.sock"),
            str(ttl),
            str(self.diary),
        ]
        self.holder = subprocess.Popen([*command, *self.uuids], stderr=self.log)
        prioritise(self.holder, "holder")

    def wait_ready(self) -> None:
        """Until the agent answers and its watchdog has been seen. Raises TimeoutError."""
        self.wait_for(self._ready, "an agent that answers")

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        patience = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > patience:
                raise TimeoutError(f"{self.folder.name}: no {what} after {seconds:.0f} s\n{self.logged()}")
            time.sleep(0.01)

    def post(self, path: str, message: dict[str, object]) -> tuple[int, dict[str, object]]:
        return self._call(path, message)

    def get(self, path: str) -> tuple[int, dict[str, object]]:
        return self._call(path, None)

    def ceilings(self) -> list[int | None]:
        """What is locked on each GPU, as the driver has it."""
        return [gpu.request.high for gpu in self.plant.gpus]

    def lock_writes(self) -> int:
        """How many clock requests the driver has had."""
        return sum(gpu.request.count for gpu in self.plant.gpus)

    def freed_at(self) -> Seconds:
        """When the last GPU was written; meaningful once all are free."""
        return max(gpu.request.at for gpu in self.plant.gpus)

    def last_sent(self) -> tuple[float, float]:
        """From the holder's diary: (sent a sync, sent one that was granted), CLOCK_MONOTONIC."""
        sent, granted = struct.unpack("dd", self.diary.read_bytes())
        return sent, granted

    def logged(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        for process in (self.holder, self.agent, self.watchdog):
            end(process, signal.SIGKILL)
        self.log.close()
        self._memory.cleanup()

    def _ready(self) -> bool:
        if self.agent is not None and self.agent.poll() is not None:
            raise RuntimeError(f"the agent has ended\n{self.logged()}")
        try:
            return self.get("/v1/gpus")[0] == 200
        except OSError:
            return False

    def _call(self, path: str, message: object) -> tuple[int, dict[str, object]]:
        connection = UnixConnection(str(self.folder / "agent.sock"), 10.0)
        try:
            return call(connection, path, message)
        finally:
            connection.close()

    def _start(
        self, command: str, environment: dict[str, str] | None, *options: str
    ) -> subprocess.Popen[bytes]:
        words: Sequence[str] = [
            sys.executable,
            "-m",
            "joulegate",
            command,
            "-c",
            str(self.folder / "agent.yaml"),
        ]
        log: IO[bytes] = self.log
        given = {"STATE_DIRECTORY": str(self.folder / "state")}  # as systemd does
        process = subprocess.Popen(
            [*words, *options],
            stderr=log,
            env=os.environ | given | (environment or {}),
            start_new_session=True,  # as a unit: its priority counts against other sessions too
        )
        prioritise(process, command)
        return process


def prioritise(process: subprocess.Popen[bytes], what: str) -> None:
    """As the units do, where this user and kernel let us; whatever the priority of this process is."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE[what])
    with contextlib.suppress(OSError):
        if what in SHARE:
            Path(f"/proc/{process.pid}/autogroup").write_text(str(SHARE[what]))


def end(process: subprocess.Popen[bytes] | None, number: int) -> None:
    """Signal one process of ours, running or stopped, and wait until it is gone."""
    if process is None:
        return
    if process.poll() is None:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
    process.wait()
