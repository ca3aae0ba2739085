"""A power emergency under load: watts of the plant under the cut budget in time, and back again."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from joulegate.shipped import shipped
from joulegate.units import Seconds
from simulator.demo_cli import TRACE
from simulator.demo_site import MODEL
from tests.e2e.standing import Site

Until = Callable[[Callable[[], object]], None]
BUDGET = 2000.0  # six GPUs under this load draw more at default clocks
HELD = 3.0  # seconds
BATCH = 64  # sequences an engine decodes
POWER_CAP = 0x4  # NVML's clock-event reason


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[Site]:
    """Pools that only advise: what clocks do here is the budget's doing."""
    power = {
        "mode": "enforce",
        "emergency_file": str(tmp_path / "on-battery"),
        "hold_s": HELD,
        "ramp_s": 2,
        "domains": [
            {"name": "row", "budget_w": BUDGET},
            {"name": "rack", "budget_w": BUDGET, "inside": "row", "agents": ["e2e"]},
        ],
    }
    found = Site(tmp_path, "advise", edit=lambda document: document.update(power=power))
    command = [sys.executable, "-m", "joulegate", "replay", str(shipped(TRACE)), "--url", found.side.url]
    load = subprocess.Popen(
        [*command, "--from", "60", "--duration", "120", "--engine", "emulated"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield found
    load.terminate()
    load.wait()
    found.close()


def now() -> Seconds:
    return Seconds(time.monotonic())


def drawn(site: Site) -> float:
    """Watts of the plant itself."""
    return sum(gpu.watts_at(now()) for gpu in site.plant.gpus)


@contextmanager
def loaded(engines: Sequence[str]) -> Iterator[None]:
    """Every engine decodes a batch until the block ends."""
    body = {"model": MODEL, "prompt": "1 2 3", "max_tokens": 8000, "ignore_eos": True, "n": BATCH}
    with httpx.Client(timeout=30.0) as client, ExitStack() as requests:
        for engine in engines:
            stream = client.stream("POST", f"{engine}/v1/completions", json=body | {"stream": True})
            requests.enter_context(stream)
        yield


def power(site: Site) -> dict[str, object]:
    found: dict[str, object] = site.http.get("/admin/fleet").json()["power"]
    return found


def emergencies(site: Site) -> list[dict[str, float | None]]:
    found = power(site)["emergencies"]
    assert isinstance(found, list)
    return found


def test_an_emergency_sheds_a_quarter_within_ten_seconds_and_ends_by_itself(
    powered: Site, until: Until
) -> None:
    site, alarm = powered, powered.side.folder / "on-battery"
    until(lambda: drawn(site) > 0.75 * BUDGET)
    until(lambda: min(site.tended()) < 1980)
    alarm.touch()
    until(lambda: power(site)["phase"] == "emergency")
    until(lambda: emergencies(site)[-1]["within_budget_after_s"] is not None)
    within = emergencies(site)[-1]["within_budget_after_s"]
    assert within is not None
    assert within <= 10.0
    until(lambda: drawn(site) <= 0.75 * BUDGET)
    page = site.http.get("/metrics").text
    assert f'joulegate_power_domain_budget_watts{{domain="rack"}} {0.75 * BUDGET}' in page
    assert "joulegate_power_emergency 1.0" in page
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) <= 0.75 * BUDGET)
    alarm.unlink()
    until(lambda: power(site)["phase"] == "recovering")
    began = emergencies(site)[-1]["began_s_ago"]
    assert began is not None
    assert began >= HELD, "not given back before it was held"
    until(lambda: power(site)["phase"] == "normal")
    assert len(emergencies(site)) == 1
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) > 0.75 * BUDGET)


def test_caps_outlive_the_gateway_and_clocks_do_not(powered: Site, until: Until) -> None:
    site = powered
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET)
    until(lambda: min(site.tended()) < 1980)
    site.side.processes["serve"].kill()
    until(lambda: min(site.ceilings()) == 1980)
    assert sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET


def test_caps_alone_keep_the_budget_in_watts_when_nobody_sets_clocks(powered: Site, until: Until) -> None:
    """The gateway is gone, and somebody loads the engines past it."""
    site = powered
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET)
    site.side.processes["serve"].kill()
    until(lambda: min(site.ceilings()) == 1980)
    with loaded(site.side.engines):
        until(lambda: any(gpu.reasons_at(now()) & POWER_CAP for gpu in site.plant.gpus))
        for _ in range(200):
            assert drawn(site) <= BUDGET
            time.sleep(0.01)
        site.side.processes["agent"].stop(30.0)  # it would set them again
        for gpu in site.plant.gpus:
            gpu.cap = gpu.cap_watts[2]
        until(lambda: drawn(site) > BUDGET)


def test_a_gateway_that_starts_without_its_budget_leaves_the_caps_until_an_operator_lifts_them(
    powered: Site, until: Until
) -> None:
    site = powered
    before = [gpu.cap_watts[1] for gpu in site.plant.gpus]
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET)
    site.edit(lambda document: document["power"].update(mode="advise"))
    site.restart()
    until(lambda: site.http.get("/admin/fleet").json()["agents"][0]["caps_w"])
    assert sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET
    assert site.http.post("/admin/uncap").json()["lifting"]
    until(lambda: [gpu.cap for gpu in site.plant.gpus] == before)
    until(lambda: not site.http.get("/admin/fleet").json()["agents"][0]["caps_w"])


def test_a_budget_taken_away_by_reload_gives_clocks_and_caps_back(powered: Site, until: Until) -> None:
    site = powered
    before = [gpu.cap_watts[1] for gpu in site.plant.gpus]
    until(lambda: sum(gpu.cap for gpu in site.plant.gpus) <= BUDGET)
    site.edit(lambda document: document.update(power={"mode": "enforce"}))
    report = site.http.post("/admin/reload").json()
    assert report["needs_restart"] == []
    until(lambda: [gpu.cap for gpu in site.plant.gpus] == before)
    until(lambda: min(site.ceilings()) == 1980)
