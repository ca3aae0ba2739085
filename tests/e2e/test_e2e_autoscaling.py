"""What an autoscaler reads, under a load that is known; and the page's KEDA example read as KEDA would."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from benchmarks import overload
from benchmarks.gateway import COMMAND
from benchmarks.processes import running, wait_until_ready
from simulator.children import free_ports
from tests.threads import beside

Until = Callable[[Callable[[], object]], None]
PAGE = Path("docs/scaling.md")
SLOTS = overload.INSTANCES * overload.SLOTS
QUERY = re.compile(r"(?:sum|max)\((\w+)\{(.*)\}\)")  # of one gateway they are the same
MODEL, POOL = "llama", "short"  # as the page names them
LONG = {"x-joulegate-true-output-tokens": "16000"}  # minutes


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two instances with eight places each, in a pool that queues; the URL."""
    folder, (port, *engines) = tmp_path_factory.mktemp("pool"), free_ports(1 + overload.INSTANCES)
    settings = overload.gateway(port, engines)
    pool = settings["models"][0]["pools"][0]  # type: ignore[index]
    settings["models"] = [{"name": MODEL, "pools": [pool | {"name": POOL, "overload": "queue"}]}]
    fleet_ = overload.fleet(folder, engines)
    for instance in fleet_["instances"]:  # type: ignore[attr-defined]
        instance["model"] = MODEL
    (folder / "fleet.yaml").write_text(json.dumps(fleet_))
    (folder / "gateway.yaml").write_text(json.dumps(settings))
    emulate = [str(COMMAND), "emulate", "-c", str(folder / "fleet.yaml")]
    serve = [str(COMMAND), "serve", "-c", str(folder / "gateway.yaml")]
    with running(emulate, folder / "emulate.log") as fleet:
        wait_until_ready(fleet, engines[-1], "/health", folder / "emulate.log")
        with running(serve, folder / "serve.log") as process:
            wait_until_ready(process, port, "/readyz", folder / "serve.log")
            yield f"http://127.0.0.1:{port}"


def hold(url: str, requests: int, ends: threading.Event) -> None:
    """So many requests that do not end."""

    async def one(client: httpx.AsyncClient) -> None:
        body = {"model": MODEL, "stream": True, "max_tokens": 16_000, "prompt": "x", "ignore_eos": True}
        async with client.stream("POST", "/v1/completions", json=body, headers=LONG) as answer:
            async for _ in answer.aiter_bytes():
                pass

    async def all_() -> None:
        limits = httpx.Limits(max_connections=None)
        key = {"authorization": "Bearer one"}
        async with httpx.AsyncClient(base_url=url, limits=limits, headers=key, timeout=None) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(requests)]
            while not ends.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_())


def samples(url: str) -> dict[str, float]:
    """Of the pool, by metric."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10.0).text)
    found = [sample for family in families for sample in family.samples]
    return {s.name: s.value for s in found if (s.labels.get("model"), s.labels.get("pool")) == (MODEL, POOL)}


def example() -> Mapping[str, object]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [found] = [block for block in blocks if "ScaledObject" in block]
    loaded: Mapping[str, object] = YAML(typ="safe").load(found)
    return loaded


def replicas(url: str) -> float:
    """What KEDA would have of the page's query, over one gateway."""
    [trigger] = example()["spec"]["triggers"]  # type: ignore[index]
    asked = QUERY.fullmatch(trigger["metadata"]["query"])
    assert asked is not None
    assert dict(re.findall(r'(\w+)="([^"]*)"', asked[2])) == {"model": MODEL, "pool": POOL}
    return samples(url)[asked[1]] / float(trigger["metadata"]["threshold"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requests", "queued", "used", "wanted"),
    [(0, 0, 0.0, 1), (4, 0, 0.25, 1), (8, 0, 0.5, 2), (SLOTS, 0, 1.0, 3), (SLOTS + 8, 8, 1.5, 4)],
)
def test_a_known_load_is_seen_as_it_is(
    gateway: str, until: Until, requests: int, queued: int, used: float, wanted: int
) -> None:
    def seen() -> tuple[float, float, float]:
        found = samples(gateway)
        names = "joulegate_queue_requests", "joulegate_capacity_used_ratio", "joulegate_desired_replicas"
        return tuple(found[name] for name in names)  # type: ignore[return-value]

    with beside(partial(hold, gateway, requests)):
        until(lambda: seen() == pytest.approx((queued, used, wanted)))
        assert replicas(gateway) == wanted
    until(lambda: seen() == (0, 0.0, 1))


def test_the_example_is_a_scaled_object() -> None:
    """As its CRD asks: names, whole numbers, metadata of strings."""
    found = example()
    assert (found["apiVersion"], found["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = found["spec"]
    assert isinstance(spec, dict)
    assert set(spec) <= {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"}
    assert isinstance(spec["scaleTargetRef"]["name"], str)
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    [trigger] = spec["triggers"]
    assert set(trigger) == {"type", "metricType", "metadata"}
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
