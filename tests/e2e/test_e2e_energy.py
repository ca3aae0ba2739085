"""Joules of a live fleet: measured, shared out without loss, and told to who asks."""

from collections.abc import Callable

import pytest
from openai import OpenAI

from simulator.demo_site import MODEL
from tests.e2e.standing import Site
from tests.e2e.test_e2e_enforce import replay

Until = Callable[[Callable[[], object]], None]
ASK = {"x-joulegate-energy": "true", "x-joulegate-true-output-tokens": "150"}


def energy(site: Site) -> dict[str, float]:
    """The totals of /admin/energy, and the sums of its parts and of all requests."""
    found = site.http.get("/admin/energy").json()
    requests = site.http.get("/admin/requests?last=1000").json()["requests"]
    return {
        "measured": found["joules_measured"],
        "attributed": found["joules_attributed"],
        "idle": found["joules_idle"],
        "pools": sum(pool["joules_attributed"] for pool in found["pools"]),
        "keys": sum(key["joules_attributed"] for key in found["keys"]),
        "requests": sum(request["actual"]["joules_attributed"] for request in requests),
    }


def test_what_requests_keys_and_pools_were_given_sums_to_the_counters(site: Site, until: Until) -> None:
    replay(site, "--from", "60", "--duration", "8", "--engine", "emulated")
    until(lambda: all(i["running"] == 0 for i in site.fleet().values()))
    found = energy(site)
    assert found["attributed"] > 1000.0
    assert found["attributed"] + found["idle"] == pytest.approx(found["measured"], rel=1e-6)
    for part in ("pools", "keys", "requests"):
        assert found[part] == pytest.approx(found["attributed"], rel=0.01)


def test_an_answer_says_what_it_took_to_who_asks(site: Site, until: Until) -> None:
    client = OpenAI(base_url=f"{site.side.url}/v1", api_key="any", max_retries=0)
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], extra_headers=ASK
    )
    answer = raw.parse()
    assert answer.usage is not None
    assert answer.usage.model_extra is not None
    told = answer.usage.model_extra["joulegate"]
    assert told["energy_source"] == "simulated"
    wanted = f"/admin/requests/{raw.headers['x-request-id']}"
    settled: list[float] = []

    def rests() -> bool:
        settled.append(site.http.get(wanted).json()["actual"]["joules_attributed"])
        return settled[-1] > 0.0 and settled[-5:] == [settled[-1]] * 5 and len(settled) > 20

    until(rests)
    assert 0.5 * settled[-1] <= told["energy_joules"] <= 2.0 * settled[-1]


def test_a_stream_says_it_in_its_usage_and_only_then(site: Site) -> None:
    client = OpenAI(base_url=f"{site.side.url}/v1", api_key="any", max_retries=0)
    *_, last = client.completions.create(
        model=MODEL,
        prompt="hi",
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=ASK,
    )
    assert last.usage is not None
    assert last.usage.model_extra is not None
    assert last.usage.model_extra["joulegate"]["energy_joules"] > 0.0
    *_, plain = client.completions.create(
        model=MODEL, prompt="hi", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    assert plain.usage is not None
    assert "joulegate" not in (plain.usage.model_extra or {})
