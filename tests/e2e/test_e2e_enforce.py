"""The main job, end to end: OpenAI client -> types and pools -> emulated vLLM -> clock of an emulated GPU."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError, OpenAI

from joulegate.shipped import shipped
from simulator.demo_cli import TRACE
from simulator.demo_site import MODEL
from tests.e2e.standing import Site

Until = Callable[[Callable[[], object]], None]
TOP = 1980


def client_of(site: Site) -> OpenAI:
    return OpenAI(base_url=f"{site.side.url}/v1", api_key="any", max_retries=0)


def replay(site: Site, *options: str) -> dict[str, object]:
    command = [sys.executable, "-m", "joulegate", "replay", str(shipped(TRACE)), "--url", site.side.url]
    done = subprocess.run([*command, "--json", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_unmodified_client_chats_streams_and_lists_models(site: Site) -> None:
    client = client_of(site)
    assert MODEL in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=7
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=7, stream=True
        )
    )
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) == 7
    assert all(c.choices for c in chunks), "the usage chunk that nobody asked for is taken out"


def test_usage_comes_when_it_was_asked_for(site: Site) -> None:
    *_, last = client_of(site).completions.create(
        model=MODEL, prompt="hi", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage is not None
    assert last.usage.completion_tokens == 3


def test_an_unknown_model_is_openais_error(site: Site) -> None:
    with pytest.raises(NotFoundError) as error:
        client_of(site).chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    assert error.value.code == "model_not_found"


def test_a_replayed_trace_is_answered_in_time_at_lower_clocks(site: Site, until: Until) -> None:
    found = replay(site, "--from", "60", "--duration", "12", "--engine", "emulated")
    assert (found["errors"], found["lost"], found["doubled"], found["usage_mismatches"]) == (0, 0, 0, 0)
    assert isinstance(found["requests"], int)
    assert found["requests"] > 20
    decided = site.http.get("/admin/decisions?last=1000").json()["decisions"]
    lowered = [d for d in decided if d["clock_mhz"] is not None and d["clock_mhz"] < TOP]
    assert lowered
    assert all(d["sentence"] and d["reason"] for d in decided)
    records = site.http.get("/admin/requests?last=1000").json()["requests"]
    done = [r for r in records if r["actual"]["outcome"] == "ok"]
    assert {r["pool"] for r in done} >= {"short"}
    assert any(r["clock_mhz"] is not None and r["clock_mhz"] < TOP for r in done), "served at a lower clock"


def test_a_client_that_leaves_frees_the_engine(site: Site, until: Until) -> None:
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 4000,
        "messages": [{"role": "user", "content": "a long story"}],
    }
    headers = {"x-joulegate-true-output-tokens": "4000"}
    with httpx.stream("POST", f"{site.side.url}/v1/chat/completions", json=body, headers=headers) as stream:
        arriving = stream.iter_bytes()  # dropping it would hang up
        assert next(arriving)
        busy = stream.headers["x-joulegate-instance"]
        assert site.fleet()[busy]["running"] == 1
    until(lambda: site.fleet()[busy]["running"] == 0)
    port = site.side.ports[list(site.fleet()).index(busy)]
    page = f"http://127.0.0.1:{port}/metrics"
    until(lambda: 'num_requests_running{engine="0",model_name="llama-3.1-8b"} 0' in httpx.get(page).text)


def test_pause_gives_clocks_back_and_resume_takes_them_up(site: Site, until: Until) -> None:
    until(lambda: min(site.tended()) < TOP)
    site.http.post("/admin/pause", json={}).raise_for_status()
    until(lambda: min(site.ceilings()) == TOP)
    site.http.post("/admin/pause", json={"resume": True}).raise_for_status()
    until(lambda: min(site.tended()) < TOP)


def test_a_drained_instance_gets_nothing_new(site: Site) -> None:
    site.http.post("/admin/drain", json={"instance": "short-0"}).raise_for_status()
    client = client_of(site)
    for _ in range(6):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=1
        )
        assert raw.headers["x-joulegate-instance"] != "short-0"
    site.http.post("/admin/drain", json={"instance": "short-0", "resume": True}).raise_for_status()


def test_reload_applies_what_it_can_and_refuses_a_bad_file(site: Site) -> None:
    path = site.side.folder / "gateway.yaml"
    good = path.read_text()
    path.write_text(
        good.replace("mode: enforce", "mode: advise", 1).replace("control:", "control:\n  dwell_s: 3")
    )
    report = site.http.post("/admin/reload").json()
    assert report["applied"] == ["models.0.pools.0.mode"]
    assert report["needs_restart"] == ["control.dwell_s"]
    path.write_text(good.replace("mode: enforce", "mode: enfroce", 1))
    refused = site.http.post("/admin/reload")
    assert refused.status_code == 422
    assert "enfroce" in refused.json()["refused"]
    assert "joulegate_config_last_reload_successful 0.0" in site.http.get("/metrics").text
    path.write_text(good)
    assert site.http.post("/admin/reload").json()["applied"] == ["models.0.pools.0.mode"]


def test_metrics_speak_of_energy_and_objectives(site: Site) -> None:
    page = site.http.get("/metrics").text
    for name in (
        "joulegate_gpu_energy_joules_total",
        "joulegate_energy_baseline_joules_total",
        "joulegate_objective_met_total",
        "joulegate_gpu_clock_hertz",
        "joulegate_decisions_total",
    ):
        assert f"\n{name}" in page


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_clocks_rise_when_the_gateway_dies_hangs_or_stops(own_site: Site, until: Until, sig: int) -> None:
    until(lambda: max(own_site.tended()) < TOP)
    gateway = own_site.side.processes["serve"]
    os.kill(gateway.pid, sig)
    until(lambda: min(own_site.ceilings()) == TOP)
    if sig == signal.SIGSTOP:
        os.kill(gateway.pid, signal.SIGKILL)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_clocks_rise_when_the_agent_dies_or_hangs_requests_go_on_and_another_takes_over(
    own_site: Site, until: Until, sig: int
) -> None:
    until(lambda: max(own_site.tended()) < TOP)
    os.kill(own_site.side.processes["agent"].pid, sig)
    until(lambda: min(own_site.ceilings()) == TOP)
    answer = client_of(own_site).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "still there?"}], max_tokens=3
    )
    assert answer.usage is not None
    until(lambda: 'joulegate_agent_up{agent="e2e"} 0.0' in own_site.http.get("/metrics").text)
    until(lambda: max(own_site.tended()) < TOP)


def test_the_demo_says_what_it_saved_or_why_not(tmp_path: Path) -> None:
    result = tmp_path / "demo.json"
    command = [sys.executable, "-m", "joulegate", "demo", "--duration", "15", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert found["errors"] == 0
    assert found["client_streams"] > 0
    assert found["output_tokens"] == found["output_tokens_default_clocks"]
    assert 0 < found["joules"] < found["joules_default_clocks"]
    assert found["simulated"] is True
    if found["saved_pct"] is None:
        assert found["why_not"] in " ".join(done.stdout.split())
    else:
        assert "(simulated)" in done.stdout
    assert f"{found['requests']} to each fleet" in done.stdout
