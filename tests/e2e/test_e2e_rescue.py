"""The emergency ladder on processes: order, maximum clock, another instance, an early end."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from joulegate.shipped import shipped
from simulator.children import free_ports
from simulator.demo_cli import PROFILE
from simulator.demo_site import MODEL, Side
from tests.e2e.lone import eventually
from tests.e2e.standing import Site, edit_yaml

COUNT = 60
LIMIT = 60.0
CHAT = "/v1/chat/completions"


class Few:
    """Some engines in one pool, of which the first can be made to stand still."""

    def __init__(self, folder: Path, count: int, overload: str) -> None:
        self.folder = folder
        self._count, self._overload = count, overload
        self.side = Side("few", "observe", folder, shipped(PROFILE), free_ports(7))
        self.side.write()
        edit_yaml(folder / "fleet.yaml", self._fleet)
        edit_yaml(folder / "gateway.yaml", self._gateway)
        try:
            asyncio.run(self.side.start())
        except BaseException:
            self.side.stop()
            raise
        self.http = httpx.Client(base_url=self.side.url, timeout=10.0)

    def _fleet(self, fleet: dict[str, Any]) -> None:
        fleet["instances"] = [
            {**instance, "dev_mode": True} for instance in fleet["instances"][: self._count]
        ]

    def _gateway(self, gateway: dict[str, Any]) -> None:
        instances = gateway["models"][0]["pools"][0]["instances"][: self._count]
        pool = {"name": "all", "mode": "observe", "instances": instances, "overload": self._overload}
        gateway["models"][0]["pools"] = [pool]
        gateway["retry"] = {"budget_pct": 100}

    def slow_down(self, ratio: float) -> None:
        """From now on an iteration of the first engine takes so many times as long; its health stays good."""
        httpx.post(f"{self.side.engines[0]}/emulator/slowdown?ratio={ratio}").raise_for_status()

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/admin/requests?last=1000").json()["requests"]
        return found

    def close(self) -> None:
        self.http.close()
        self.side.stop()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Few]:
    found = Few(tmp_path, 2, "queue")
    yield found
    found.close()


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Few]:
    """One that refuses whom it cannot serve in time."""
    found = Few(tmp_path, 1, "shed")
    yield found
    found.close()


def patient(gateway: dict[str, Any]) -> None:
    """One instance that serves one request at a time, promised for later than a test takes."""
    instance = gateway["models"][0]["pools"][0]["instances"][0]
    pool = {"name": "all", "mode": "enforce", "instances": [{**instance, "slots": 1}]}
    gateway["models"][0]["pools"] = [pool]
    gateway["control"]["mapping"] = "trust"
    gateway["objectives"] = {"ttft_ms": {"short": 100_000, "medium": 200_000, "long": 300_000}}


@pytest.fixture
def queueing(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path, "enforce", edit=patient)
    yield found
    found.close()


def asked(words: int, tokens: int, **headers: str) -> dict[str, Any]:
    """A stream of so many output tokens."""
    message = {"role": "user", "content": "word " * words}
    body = {"model": MODEL, "messages": [message], "max_tokens": tokens, "stream": True}
    true = {"x-joulegate-true-output-tokens": str(tokens)}
    return {"json": body, "headers": true | headers, "timeout": LIMIT}


def ask(http: httpx.Client, words: int, tokens: int, **headers: str) -> httpx.Response:
    """Read to its end."""
    return http.post(CHAT, **asked(words, tokens, **headers))


def test_a_prompt_that_is_due_sooner_passes_one_that_may_wait(queueing: Site) -> None:
    ended: list[str] = []

    def queued() -> int:
        found: int = queueing.http.get("/admin/fleet").json()["models"][0]["pools"][0]["queued"]
        return found

    with ThreadPoolExecutor() as clients:

        def begin(name: str, words: int, tokens: int) -> "Future[httpx.Response]":
            future = clients.submit(ask, queueing.http, words, tokens)
            future.add_done_callback(lambda _: ended.append(name))
            return future

        with queueing.http.stream("POST", CHAT, **asked(5, 10_000)) as first:  # until both others wait
            assert first.status_code == 200
            answers = [begin("long", 3000, 300)]
            eventually(lambda: queued() == 1, LIMIT)
            answers.append(begin("short", 5, 5))
            eventually(lambda: queued() == 2, LIMIT)
        assert {answer.result().status_code for answer in answers} == {200}
    assert ended == ["short", "long"]


def test_a_backlog_that_cannot_be_in_time_is_worked_off_at_maximum_clock(queueing: Site) -> None:
    top = max(queueing.ceilings())
    eventually(lambda: queueing.tended()[0] < top, LIMIT)
    with ThreadPoolExecutor() as clients:
        headers = {"x-slo-ttft-ms": "300"}
        answers = [clients.submit(ask, queueing.http, 3000, 100, **headers) for _ in range(8)]
        eventually(lambda: queueing.ceilings()[0] == top, LIMIT)
        assert {answer.result().status_code for answer in answers} == {200}
    assert 'reason="overload"' in queueing.http.get("/metrics").text
    eventually(lambda: queueing.tended()[0] < top, LIMIT)


def test_who_is_past_its_deadline_and_keeps_others_waiting_is_ended_where_the_pool_sheds(lone: Few) -> None:
    eventually(lambda: lone.http.get("/readyz").is_success, 30.0)
    assert ask(lone.http, 5, 5).status_code == 200
    lone.slow_down(300.0)
    with ThreadPoolExecutor(COUNT) as clients:
        answers = []
        for _ in range(COUNT):
            answers.append(clients.submit(ask, lone.http, 50, 5))
            time.sleep(0.05)
        lone.slow_down(1.0)
        found = [answer.result() for answer in answers]
    squashed = [answer for answer in found if "deadline_passed" in answer.text]
    assert squashed
    assert {answer.status_code for answer in squashed} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in squashed)
    eventually(lambda: ask(lone.http, 5, 5).status_code == 200, LIMIT)


def test_what_an_engine_that_stands_still_was_sent_is_answered_by_another(pair: Few) -> None:
    trace = pair.folder / "trace.csv"
    rows = [f"{0.05 * n:.2f},{100 + n},20" for n in range(COUNT)]
    trace.write_text("\n".join(["timestamp_s,input_tokens,output_tokens", *rows]) + "\n")
    command = [sys.executable, "-m", "joulegate", "replay", str(trace), "--url", pair.side.url]
    eventually(lambda: pair.http.get("/readyz").is_success, 30.0)
    pair.slow_down(100_000.0)
    done = subprocess.run([*command, "--model", MODEL, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (found["requests"], found["errors"], found["lost"]) == (COUNT, 0, 0), found
    outcomes = [record["actual"]["outcome"] for record in pair.records()]
    assert outcomes.count("ok") == COUNT
    assert outcomes.count("resteered") > 0
    served = {record["instance"] for record in pair.records() if record["actual"]["outcome"] == "ok"}
    assert served == {"short-1"}
