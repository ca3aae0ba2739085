"""Children end with who started them, leave nothing behind, and are started again where they were killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import stat_fields
from simulator.children import Child, free_ports

SLEEPER = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEPER}"
PARENT = """
import sys
from pathlib import Path
from simulator.children import Child
child = Child([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
child.start()
sys.stdin.read()
"""


def wait_for(log: Path, lives: int) -> list[int]:
    """The process ids it has printed, once there are so many."""
    end = time.monotonic() + 30
    while not log.exists() or log.read_text().count("\n") < lives:
        assert time.monotonic() < end, "it was not started"
        time.sleep(0.01)
    return [int(line) for line in log.read_text().split()]


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while stat_fields(pid)[:1] not in ([], ["Z"]):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "again"),
    [
        pytest.param(signal.SIGKILL, True, id="killed, as a watchdog kills its agent"),
        pytest.param(signal.SIGTERM, False, id="told to stop"),
    ],
)
def test_only_one_that_was_killed_is_revived(tmp_path: Path, number: int, again: bool) -> None:
    child = Child([sys.executable, "-c", SLEEPER], tmp_path / "log")
    assert not child.revive(), "it was never started"
    child.start()
    wait_for(tmp_path / "log", 1)
    assert not child.revive(), "it lives"
    child.signal(number)
    assert child.running is not None
    child.running.wait(30)
    assert child.revive() is again
    assert child.alive is again
    child.stop()
    assert not child.alive


@pytest.mark.parametrize("program", [SLEEPER, STUBBORN])
def test_stop_ends_also_one_that_is_stopped_or_does_not_listen(tmp_path: Path, program: str) -> None:
    child = Child([sys.executable, "-c", program], tmp_path / "log")
    child.start()
    [pid] = wait_for(tmp_path / "log", 1)
    child.signal(signal.SIGSTOP)
    child.stop(0.2)
    assert stat_fields(pid) == []


def test_a_child_dies_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [sys.executable, "-c", PARENT, SLEEPER, str(log)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    ) as parent:
        [pid] = wait_for(log, 1)
        parent.kill()
    wait_until_gone(pid)


def test_free_ports_are_different_ones() -> None:
    assert len(set(free_ports(20))) == 20
