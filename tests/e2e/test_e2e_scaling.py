"""A plan in force over engines that sleep: gateway, agent and emulated engines as processes.

The figures printed (`pytest -s`) are those of docs/scaling.md; what is asserted holds on a busy machine.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.scaling import WAKE, ScaleSite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT = 45.0


def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"never came true: {condition}"
        time.sleep(0.02)


@contextmanager
def site_of(folder: Path, **settings: Any) -> Iterator[ScaleSite]:
    site = ScaleSite(folder, **settings)
    try:
        yield site
    finally:
        site.close()


def cold(gateway: dict[str, Any]) -> None:
    """Nothing needs to stay warm."""
    for pool in gateway["models"][0]["pools"]:
        pool["min_warm"] = 0


def narrow(gateway: dict[str, Any]) -> None:
    """Eight sequences fill an instance."""
    for instance in gateway["models"][0]["pools"][0]["instances"]:
        instance["slots"] = 8


def impatient(gateway: dict[str, Any]) -> None:
    """As `cold`; starting may take two seconds."""
    cold(gateway)
    for instance in gateway["models"][0]["pools"][0]["instances"]:
        instance["scale"]["start_s"] = 2


def test_what_is_not_needed_sleeps_and_one_stays_warm_and_load_wakes_the_other(tmp_path: Path) -> None:
    with site_of(tmp_path, change=narrow) as site:
        until(lambda: site.phases() == ["serving", "stopped"])
        assert site.asleep() == [False, True]
        assert site.ask().status_code == 200
        first = site.picture()["transitions"][-1]
        assert (first["way"], first["outcome"]) == ("stop", "done")
        answers: list[int] = []
        long = {"x-joulegate-true-output-tokens": "600"}
        threads = [
            threading.Thread(target=lambda: answers.append(site.ask(600, **long).status_code))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        until(lambda: site.phases() == ["serving", "serving"])
        for thread in threads:
            thread.join()
        assert answers == [200] * 40
        started = next(one for one in site.picture()["transitions"] if one["way"] == "start")
        assert started["seconds"] >= WAKE
        page = site.http.get("/metrics").text
        assert 'way="start"} ' in page


def test_a_request_that_finds_all_asleep_wakes_one_and_is_served(tmp_path: Path) -> None:
    with site_of(tmp_path, change=cold) as site:
        until(lambda: site.phases() == ["stopped", "stopped"])
        assert site.asleep() == [True, True]
        took = _first_byte(site)
        assert sorted(site.phases()) == ["serving", "stopped"], "one is enough"
        warm = min(_first_byte(site) for _ in range(10))
        sys.stdout.write(
            f"\nfirst byte after {1e3 * warm:.0f} ms warm, {1e3 * took:.0f} ms asleep: {1e3 * WAKE:.0f} ms of"
            f" waking and {1e3 * (took - WAKE - warm):.0f} ms more\n"
        )
        assert took >= WAKE


def _first_byte(site: ScaleSite) -> float:
    body = {"model": "llama-3.1-8b", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    began = time.monotonic()
    with site.http.stream("POST", "/v1/chat/completions", json={**body, "max_tokens": 2}) as stream:
        assert stream.status_code == 200
        arriving = stream.iter_bytes()
        next(arriving)
        took = time.monotonic() - began
        for _ in arriving:
            pass
    return took


def test_a_request_waits_for_a_wake_that_fails_at_first(tmp_path: Path) -> None:
    with site_of(tmp_path, change=impatient) as site:
        until(lambda: site.phases() == ["stopped", "stopped"])
        engines = site.side.processes["emulate"].pid
        os.kill(engines, signal.SIGSTOP)
        answer: list[httpx.Response] = []
        client = threading.Thread(target=lambda: answer.append(site.ask()))
        client.start()
        until(lambda: any(i["failures"] for i in site.instances().values()))
        os.kill(engines, signal.SIGCONT)
        client.join()
        assert answer[0].status_code == 200
        assert "within 2 s" in str([one["problem"] for one in site.picture()["transitions"]])


def test_instances_that_do_not_wake_are_given_up_aloud_and_clients_are_told(tmp_path: Path) -> None:
    with site_of(tmp_path, change=impatient, plan={"tries": 2, "given_up_s": 25}) as site:
        until(lambda: site.phases() == ["stopped", "stopped"])
        engines = site.side.processes["emulate"].pid
        os.kill(engines, signal.SIGSTOP)
        try:
            refused = site.ask()
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert set(site.phases()) == {"failed"}
            log = (tmp_path / "serve.log").read_text()
            assert "instance given up" in log
            assert 'phase="failed"' in site.http.get("/metrics").text
        finally:
            os.kill(engines, signal.SIGCONT)
        until(lambda: "failed" not in site.phases(), 90.0)
        assert site.ask().status_code == 200


def test_engines_that_die_asleep_and_come_back_awake_are_used_and_sent_to_sleep_again(tmp_path: Path) -> None:
    with site_of(tmp_path) as site:
        until(lambda: site.phases() == ["serving", "stopped"])
        site.kill("emulate")
        until(lambda: "unknown" in {i["seen"] for i in site.instances().values()})
        until(lambda: site.ask().status_code == 503)  # 502 until its health is known
        site.start("emulate")
        until(lambda: site.ask().status_code == 200)
        until(lambda: site.phases() == ["serving", "stopped"] and site.asleep() == [False, True])


def test_a_gateway_killed_between_fence_and_sleep_leaves_an_engine_that_serves(tmp_path: Path) -> None:
    with site_of(tmp_path, plan={"calm_s": 8}) as site:
        body = {"model": "llama-3.1-8b", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"x-joulegate-true-output-tokens": "4000"}
        with ExitStack() as stack:
            for _ in range(8):
                one = site.http.stream(
                    "POST", "/v1/chat/completions", json={**body, "max_tokens": 4000}, headers=headers
                )
                assert stack.enter_context(one).status_code == 200
            until(lambda: "draining" in site.phases())
            site.kill("serve")
        site.start("serve")
        until(site.serves)
        until(lambda: site.phases() == ["serving", "serving"])
        assert site.asleep() == [False, False]
        assert site.ask().status_code == 200
        until(lambda: site.phases() == ["serving", "stopped"])


def test_a_gateway_killed_while_an_engine_goes_to_sleep_goes_on_from_what_it_finds(tmp_path: Path) -> None:
    with site_of(tmp_path, sleep=3.0) as site:
        until(lambda: "stopping" in site.phases())
        site.kill("serve")
        site.start("serve")
        until(site.serves)
        until(lambda: site.phases() == ["serving", "stopped"])
        assert site.asleep() == [False, True]
        assert site.ask().status_code == 200


def test_pools_that_cost_more_apart_are_merged_and_both_kinds_of_requests_are_served(tmp_path: Path) -> None:
    pools = {"short": (1, ["SS", "SM", "MS", "MM"]), "long": (1, ["SL", "ML", "LS", "LM", "LL"])}
    with site_of(tmp_path, pools=pools, plan={"pools": "elastic"}) as site:
        until(lambda: site.phases() == ["serving", "serving"])
        stop = threading.Event()
        codes: list[int] = []

        def client(prompt: str) -> None:
            with httpx.Client(base_url=site.side.url, timeout=60.0) as http:
                body = {"model": "llama-3.1-8b", "max_tokens": 20}
                message = {"role": "user", "content": prompt}
                while not stop.wait(0.5):
                    answer = http.post("/v1/chat/completions", json={**body, "messages": [message]})
                    codes.append(answer.status_code)

        threads = [threading.Thread(target=client, args=(text,)) for text in ("hi", "word " * 2000)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: site.picture()["models"][0]["pools"][0]["merged_into"] == "long")
            until(lambda: sorted(site.phases()) == ["serving", "stopped"])
            served = len(codes)
            until(lambda: len(codes) > served + 10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(codes) == {200}
        assert {each["pool"] for each in site.instances().values()} == {"long"}
        assert site.ask().headers["x-joulegate-pool"] == "long"
