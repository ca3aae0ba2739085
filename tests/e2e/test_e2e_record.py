"""What a live gateway recorded, played again, decides the same, one by one."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from control.playback import Step, playback
from joulegate.shipped import shipped
from simulator.demo_cli import TRACE
from simulator.demo_site import MODEL
from tests.e2e.standing import Site

REQUESTS = 300
SPEED = 4.0


def record_all(gateway: dict[str, Any]) -> None:
    """A slot each, so that requests wait, and one pool that refuses."""
    gateway["control"] |= {"record_file": "record.jsonl", "mapping": "trust"}
    gateway["objectives"] = {"ttft_ms": {"short": 150, "medium": 200, "long": 500}, "max_slowdown": None}
    pools = gateway["models"][0]["pools"]
    pools[0]["overload"] = "shed"
    for pool in pools:
        for instance in pool["instances"]:
            instance["slots"] = 1


def test_a_recorded_live_run_played_again_decides_the_same_one_by_one(tmp_path: Path) -> None:
    site = Site(tmp_path, "enforce", edit=record_all)
    try:
        command = [sys.executable, "-m", "joulegate", "replay", str(shipped(TRACE)), "--url", site.side.url]
        words = ["--limit", str(REQUESTS), "--speed", str(SPEED), "--model", MODEL, "--json"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        sent = json.loads(done.stdout)["requests"]
    finally:
        site.close()
    with (tmp_path / "record.jsonl").open("rb") as recording:
        steps = list(playback(recording))
    assert [step for step in steps if not step.same] == []
    again = subprocess.run(
        [sys.executable, "-m", "joulegate", "recheck", str(tmp_path / "record.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == f"{len(steps)} decisions, all as recorded\n"
    kinds = Counter(step.kind for step in steps)
    assert kinds["arrive"] == sent == REQUESTS
    assert kinds["tick"] > 0
    at_once = sum(bool(answer_of(step)["grants"]) for step in steps if step.kind == "arrive")
    later = sum(len(answer_of(step)["grants"]) for step in steps if step.kind == "assign")
    refused = sum(len(answer_of(step)["rejects"]) for step in steps if step.kind != "tick")
    assert at_once
    assert later, "requests waited"
    assert refused, "requests were refused"
    clocks = {answer_of(step)["clock"] for step in steps if step.kind == "tick"}
    assert len(clocks - {None}) > 1, "clocks were chosen"


def answer_of(step: Step) -> dict[str, Any]:
    assert isinstance(step.recorded, tuple)
    answer: dict[str, Any] = step.recorded[0]
    return answer
