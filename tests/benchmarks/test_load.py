"""The load generator sees every request and every lost event; else no figure means anything."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import running, wait_until_ready
from simulator.children import free_ports

CHUNKS = 5


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    (free,) = free_ports(1)
    log = tmp_path / "engine.log"
    argv = [sys.executable, "-m", "benchmarks.fake_upstream", "--ports", str(free)]
    with running([*argv, "--chunks", str(CHUNKS), "--gap-ms", "1"], log) as process:
        wait_until_ready(process, free, "/health", log)
        yield free


def load(port: int, mode: str, *options: str) -> tuple[int, dict[str, float]]:
    argv = [sys.executable, "-m", "benchmarks.load", mode, "--port", str(port), "--connections", "4"]
    done = subprocess.run([*argv, "--duration", "0.2", *options], capture_output=True, check=False)
    report: dict[str, float] = json.loads(done.stdout)
    return done.returncode, report


@pytest.mark.parametrize("mode", ["closed", "paced", "cancel"])
def test_every_request_is_answered(port: int, mode: str) -> None:
    status, report = load(port, mode, "--rate", "200")
    assert (status, report["errors"]) == (0, 0)
    assert report["requests"] >= 4


def test_every_event_of_a_stream_is_counted(port: int) -> None:
    status, report = load(port, "stream", "--chunks", str(CHUNKS))
    assert (status, report["errors"]) == (0, 0)
    assert report["events"] == report["requests"] * CHUNKS > 0


def test_a_stream_that_is_not_whole_is_an_error(port: int) -> None:
    status, report = load(port, "stream", "--chunks", str(CHUNKS + 1))
    assert status == 1
    assert report["errors"] == report["requests"] > 0
