import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import (
    DidNotStart,
    cpu_seconds,
    kept,
    rss_mb,
    running,
    stat_fields,
    tree,
    wait_until_ready,
)
from simulator.children import free_ports

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
NAMED = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
HOLD = "import sys, time\nheld = b'x' * 60_000_000\nprint(flush=True)\ntime.sleep(60)\n"


def test_cpu_of_children_that_ended_and_that_live_is_counted(tmp_path: Path) -> None:
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"
    parent = f"{child}subprocess.Popen([sys.executable, '-c', {BURN + HOLD!r}], stdout=1).wait()\n"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_seconds(process.pid) >= 0.55
        assert rss_mb(process.pid) >= 60
        for pid in reversed(tree(process.pid)):
            subprocess.run(["kill", str(pid)], check=True)


def test_nothing_of_a_process_group_is_left(tmp_path: Path) -> None:
    parent = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {HOLD!r}]).wait()\n"
    log = tmp_path / "log"
    with running([sys.executable, "-c", parent], log) as process:
        while not log.read_bytes():
            assert process.alive
        members = tree(process.pid)
        assert len(members) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in members):
        assert time.monotonic() < deadline, "killed, but still there"
        time.sleep(0.01)


def test_one_that_is_killed_is_started_again_and_is_gone_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with kept([sys.executable, "-c", NAMED], log) as child:
        wait_for_lives(log, 1)
        child.kill()
        wait_for_lives(log, 2)
    pids = [int(line) for line in log.read_text().split()]
    assert len(set(pids)) == 2
    assert pids[1] == child.pid
    assert not any(alive(pid) for pid in pids)


def wait_for_lives(log: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while log.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "it was not started"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return stat_fields(pid)[:1] not in ([], ["Z"])


def test_a_process_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        running([sys.executable, "-c", "print('no such model')"], log) as process,
        pytest.raises(DidNotStart, match="no such model"),
    ):
        wait_until_ready(process, free_ports(1)[0], "/health", log)
