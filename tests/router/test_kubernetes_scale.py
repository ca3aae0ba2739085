"""Workloads scaled through an API server: what is seen, what is set, what is refused."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from control.lifecycle import Seen
from joulegate.settings.plan import Kubernetes
from router.actuators import ActuationFailed
from router.kubernetes_scale import KubernetesReplica, Workload
from tests.fakes.kube import FakeCluster, FakeSet, autoscaler, scaled_object


class Pods:
    """The first three pods of a workload, as actuators."""

    def __init__(self, cluster: FakeCluster, kubeconfig: Path, workload: str) -> None:
        self.cluster = cluster
        section = Kubernetes(workload=workload, namespace="llm", kubeconfig=kubeconfig)
        self.workload = Workload(section)
        self.pods = [KubernetesReplica(self.workload, number) for number in range(3)]

    async def seen(self) -> list[Seen]:
        return [(await pod.look()).seen for pod in self.pods]

    async def until(self, *expected: Seen) -> None:
        await eventually(lambda: self.workload.replicas is not None)
        end = asyncio.get_running_loop().time() + 30.0
        while await self.seen() != list(expected):
            assert asyncio.get_running_loop().time() < end, (await self.seen(), self.workload.problem)
            await asyncio.sleep(0.01)


async def eventually(condition: Callable[[], object]) -> None:
    end = asyncio.get_running_loop().time() + 30.0
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)


async def pods_of(
    stack: AsyncExitStack, folder: Path, one: FakeSet, workload: str = "statefulset/vllm"
) -> Pods:
    cluster = await stack.enter_async_context(FakeCluster(one).serving())
    pods = Pods(cluster, cluster.kubeconfig(folder), workload)
    stack.push_async_callback(pods.workload.close)
    await pods.seen()
    return pods


R, S, U = Seen.RUNNING, Seen.STOPPED, Seen.UNKNOWN


async def test_pods_start_one_after_the_other_and_stop_from_the_last(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "vllm"))
        await pods.until(R, S, S)
        await pods.pods[2].start()
        await pods.until(R, R, R)
        with pytest.raises(ActuationFailed, match=r"pod 2 .* would stop before pod 1"):
            await pods.pods[1].stop()
        await pods.pods[2].stop()
        await pods.until(R, R, S)
        assert pods.cluster.watches == 1, "changes came by the watch that was there"


async def test_what_is_so_already_is_not_set_again(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one = FakeSet("StatefulSet", "vllm", wanted=2, there=2)
        pods = await pods_of(stack, tmp_path, one)
        await pods.until(R, R, S)
        version = one.version
        await pods.pods[0].start()
        await pods.pods[2].stop()
        assert (one.wanted, one.version) == (2, version)


async def test_a_pod_on_its_way_is_neither(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "vllm", wanted=2, there=1))
        await pods.until(R, U, S)
        assert "1 of 2 pods are ready" in (await pods.pods[1].look()).why


async def test_a_deployment_has_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("Deployment", "vllm"), "deployment/vllm")
        await pods.until(R, S, S)
        await pods.pods[0].stop()
        await pods.until(S, S, S)


async def test_who_changes_it_at_the_same_time_is_not_written_over(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "vllm"))
        pods.cluster.rivals = 2
        await pods.pods[1].start()
        await pods.until(R, R, S)
        pods.cluster.rivals = 100
        with pytest.raises(ActuationFailed, match="keeps changing it"):
            await pods.pods[2].start()


@pytest.mark.parametrize(
    ("hpas", "scaled"),
    [
        ([autoscaler("StatefulSet", "vllm")], None),
        ([], [scaled_object("vllm", "StatefulSet")]),
    ],
    ids=["HPA", "KEDA"],
)
async def test_what_an_autoscaler_owns_is_refused(
    tmp_path: Path, hpas: list[dict[str, object]], scaled: list[dict[str, object]] | None
) -> None:
    async with AsyncExitStack() as stack:
        one = FakeSet("StatefulSet", "vllm")
        pods = await pods_of(stack, tmp_path, one)
        pods.cluster.autoscalers, pods.cluster.scaled_objects = hpas, scaled
        with pytest.raises(ActuationFailed, match=r"is scaled by (HorizontalPodAutoscaler|ScaledObject)"):
            await pods.pods[1].start()
        assert one.wanted == 1


async def test_autoscalers_of_others_do_not_matter(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "vllm"))
        pods.cluster.autoscalers = [autoscaler("Deployment", "vllm"), autoscaler("StatefulSet", "web")]
        pods.cluster.scaled_objects = [scaled_object("vllm", None)]  # KEDA's default is a deployment
        await pods.pods[1].start()
        await pods.until(R, R, S)


@pytest.mark.parametrize(
    "error", [None, {"code": 410, "reason": "Expired", "message": "too old resource version"}]
)
async def test_a_watch_that_ends_is_begun_anew(tmp_path: Path, error: dict[str, object] | None) -> None:
    async with AsyncExitStack() as stack:
        one = FakeSet("StatefulSet", "vllm")
        pods = await pods_of(stack, tmp_path, one)
        await eventually(lambda: pods.cluster.watches == 1)
        pods.cluster.cut_watches(error)
        await eventually(lambda: not one.changes)
        one.change(wanted=2, there=2)  # while nobody watches
        await pods.until(R, R, S)
        assert pods.cluster.watches >= 1


async def test_without_an_answer_nothing_is_known_until_there_is_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "vllm"))
        await pods.until(R, S, S)
        pods.cluster.failing = True
        pods.cluster.cut_watches()
        await eventually(lambda: pods.workload.replicas is None)
        assert await pods.seen() == [U, U, U]
        assert "500" in (await pods.pods[0].look()).why
        with pytest.raises(ActuationFailed, match="500"):
            await pods.pods[1].start()
        pods.cluster.failing = False
        await pods.until(R, S, S)


async def test_a_workload_that_is_not_there_and_a_wrong_token_are_named(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pods = await pods_of(stack, tmp_path, FakeSet("StatefulSet", "other"))
        await eventually(lambda: "404" in pods.workload.problem)
        assert "StatefulSet llm/vllm" in (await pods.pods[0].look()).why
        wrong = Pods(pods.cluster, pods.cluster.kubeconfig(tmp_path, "guess"), "statefulset/other")
        stack.push_async_callback(wrong.workload.close)
        with pytest.raises(ActuationFailed, match="401"):
            await wrong.pods[0].start()
