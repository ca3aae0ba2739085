"""Two gateways over one Redis in front of the same instances."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from simulator.demo_site import MODEL
from tests.e2e.standing import Site
from tests.redis_server import redis_server

Until = Callable[[Callable[[], object]], None]
TOP = 1980


class Pair:
    def __init__(self, folder: Path, redis_url: str) -> None:
        self.site = Site(folder, "enforce", redis_url)
        self.second, self.second_url = self.site.second_gateway()

    def picture(self, url: str) -> dict[str, object]:
        """/admin/fleet of one gateway; {} while it does not answer."""
        try:
            found: dict[str, object] = httpx.get(f"{url}/admin/fleet", timeout=2.0).json()
        except httpx.HTTPError:
            return {}
        return found


@pytest.fixture
def pair(tmp_path: Path, until: Until) -> Iterator[Pair]:
    site = tmp_path / "site"
    site.mkdir()
    with redis_server(tmp_path) as url:
        found = Pair(site, url)
        try:
            until(lambda: found.picture(found.second_url).get("replicas") == 2)
            until(lambda: found.picture(found.site.side.url).get("replicas") == 2)
            yield found
        finally:
            found.site.close()


def test_one_leads_both_serve_and_when_the_leader_dies_the_other_takes_the_clocks_over(
    pair: Pair, until: Until
) -> None:
    first, second = pair.site.side.url, pair.second_url
    assert [pair.picture(url)["leads"] for url in (first, second)] == [True, False]
    for url in (first, second):
        answer = OpenAI(base_url=f"{url}/v1", api_key="any").chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3
        )
        assert answer.usage is not None
    until(lambda: max(pair.site.tended()) < TOP)
    os.kill(pair.site.side.processes["serve"].pid, signal.SIGKILL)
    until(lambda: pair.picture(second)["leads"])
    until(lambda: max(pair.site.tended()) < TOP and _lease(pair, second))
    until(lambda: pair.picture(second)["replicas"] == 1)


def _lease(pair: Pair, url: str) -> bool:
    agents = pair.picture(url)["agents"]
    assert isinstance(agents, list)
    return bool(agents[0]["lease"])


def test_what_one_carries_the_other_counts(pair: Pair, until: Until) -> None:
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a long story"}]}
    headers = {"x-joulegate-true-output-tokens": "3000"}
    first = pair.site.side.url
    with httpx.stream(
        "POST", f"{pair.second_url}/v1/chat/completions", json=body, headers=headers, timeout=30.0
    ) as stream:
        arriving = stream.iter_bytes()
        assert next(arriving)
        name = stream.headers["x-joulegate-instance"]
        until(
            lambda: name in _sentence(pair, first, name) and "with 1 running" in _sentence(pair, first, name)
        )


def _sentence(pair: Pair, url: str, name: str) -> str:
    models = pair.picture(url)["models"]
    assert isinstance(models, list)
    instances = [i for m in models for p in m["pools"] for i in p["instances"]]
    return next(str(i["decision"]) for i in instances if i["name"] == name)


def test_with_redis_gone_requests_go_on_and_it_is_said(tmp_path: Path, until: Until) -> None:
    site = tmp_path / "site"
    site.mkdir()
    with redis_server(tmp_path) as url:
        found = Site(site, "enforce", url)
    try:
        until(lambda: found.http.get("/readyz").json()["store"] == "down")
        answer = OpenAI(base_url=f"{found.side.url}/v1", api_key="any").chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3
        )
        assert answer.usage is not None
        assert "joulegate_store_up 0.0" in found.http.get("/metrics").text
        until(lambda: max(found.tended()) < TOP)
    finally:
        found.close()
