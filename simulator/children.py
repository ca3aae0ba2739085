"""Shell: commands as child processes: started, ended, and started again where they were killed.

Every child dies with this process: on Linux the kernel sees to it (PR_SET_PDEATHSIG), whatever ends us.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOP_WITHIN = 10.0  # seconds to leave in order: clocks given back, streams ended


class Child:
    """One command, in a session of its own. What it prints is added to `log`."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to ours. Nothing runs before `start`."""
        self.argv = list(argv)
        self.log = log
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self.running: subprocess.Popen[bytes] | None = None  # the newest, also once it has ended

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        """From a thread that lives as long as the child shall: it dies with the thread that started it."""
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                self.argv,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on, in order
                preexec_fn=die_with_parent,
            )

    def revive(self) -> bool:
        """Do what systemd does: start it again if it was killed. Whether it was.

        An agent is, by its watchdog, once it has stood still past its deadline.
        """
        if self.running is None or self.running.poll() != -signal.SIGKILL:
            return False
        self.start()
        return True

    def signal(self, number: int) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.running is not None
        self.running.wait()

    def stop(self, within: float = STOP_WITHIN) -> None:
        """In order if it can, running or stopped; nothing of its session is left."""
        if self.running is None:
            return
        if self.running.poll() is None:
            self.running.terminate()
            self.running.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.running.wait(within)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.wait()


def joulegate(*words: str) -> list[str]:
    """The command line of one of our commands."""
    return [sys.executable, "-m", "joulegate", *words]


def die_with_parent() -> None:
    """In a child, before it becomes another program: end when the parent does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1:  # the parent went before the line above
            os.kill(os.getpid(), signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
