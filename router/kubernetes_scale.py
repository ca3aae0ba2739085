"""Shell: Kubernetes as an actuator. The only module that imports the official client (extra `k8s`).

An instance is one pod of a stateful set, by its number, or the one pod of a deployment. Their replicas are
set through the `scale` subresource, with the version that was read: what somebody else changed meanwhile is
not written over. What the workload looks like comes by a watch, one for each workload, begun anew with a read
whenever it ends, so that nothing depends on having seen every event. A workload that an autoscaler owns is
refused: two that scale the same thing undo each other's work.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config, watch
from kubernetes.aio.client.exceptions import ApiException

from control.lifecycle import Seen
from joulegate.settings.plan import Kubernetes as Section
from router.actuators import ActuationFailed, Sight

log = logging.getLogger(__name__)
WITHIN = 10.0  # seconds for one call
WATCH = 60  # seconds; then the workload is read anew
AGAIN = 1.0  # seconds until a watch that broke is begun anew
TRIES = 5  # when somebody else changes the workload at the same time
KINDS = {"statefulset": "StatefulSet", "deployment": "Deployment"}
PROBLEMS = (ApiException, aiohttp.ClientError, TimeoutError, OSError, config.ConfigException)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of a workload: wanted, there, ready to serve."""

    wanted: int
    there: int
    ready: int


class Workload:
    """One stateful set or deployment, followed from the first look on. Close it."""

    def __init__(self, section: Section) -> None:
        kind, _, self.name = section.workload.partition("/")
        self.kind = KINDS[kind]
        self.namespace = section.namespace
        self.replicas: Replicas | None = None
        self.problem = "not read yet"
        self._kubeconfig = section.kubeconfig
        self._client: client.ApiClient | None = None
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Lock()  # one change at a time

    @property
    def place(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def follow(self) -> None:
        """Keep `replicas` up to date from now on."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name=f"watch {self.place}")

    async def scale(self, count: int, *, up: bool) -> None:
        """Set its replicas to `count`, never the other way than `up` says. Raises ActuationFailed."""
        async with self._changed:
            try:
                await self._refuse_owned()
                for _ in range(TRIES):
                    if await self._set(count, up=up):
                        return
            except PROBLEMS as error:
                raise ActuationFailed(f"{self.place}: {_words(error)}") from error
        raise ActuationFailed(f"{self.place}: somebody else keeps changing it")

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _set(self, count: int, *, up: bool) -> bool:
        """False: it was changed between reading and writing."""
        apps, stem = client.AppsV1Api(await self._api()), _STEMS[self.kind]
        read, write = getattr(apps, f"read_{stem}_scale"), getattr(apps, f"replace_{stem}_scale")
        scale = await read(self.name, self.namespace, _request_timeout=WITHIN)
        now = scale.spec.replicas or 0
        if (now >= count) if up else (now <= count):
            return True
        scale.spec.replicas = count
        try:
            await write(self.name, self.namespace, scale, _request_timeout=WITHIN)
        except ApiException as error:
            if error.status == 409:
                return False
            raise
        log.info("scaled", extra={"workload": self.place, "from": now, "to": count})
        return True

    async def _refuse_owned(self) -> None:
        """Raises ActuationFailed where an HPA or KEDA scales it."""
        api = await self._api()
        listed = client.AutoscalingV2Api(api).list_namespaced_horizontal_pod_autoscaler
        for each in (await listed(self.namespace, _request_timeout=WITHIN)).items:
            target = each.spec.scale_target_ref
            if (target.kind, target.name) == (self.kind, self.name):
                self._owned(f"HorizontalPodAutoscaler {each.metadata.name}")
        for keda in await self._scaled_objects(api):
            target = keda["spec"]["scaleTargetRef"]
            if (target.get("kind", "Deployment"), target["name"]) == (self.kind, self.name):
                self._owned(f"ScaledObject {keda['metadata']['name']}")

    def _owned(self, by: str) -> None:
        raise ActuationFailed(f"{self.place} is scaled by {by}: take that away, or `scale` from the instance")

    async def _scaled_objects(self, api: client.ApiClient) -> list[Mapping[str, Any]]:
        listed = client.CustomObjectsApi(api).list_namespaced_custom_object
        try:
            found = await listed(
                "keda.sh", "v1alpha1", self.namespace, "scaledobjects", _request_timeout=WITHIN
            )
        except ApiException as error:
            if error.status == 404:
                return []  # no KEDA here
            raise
        items: list[Mapping[str, Any]] = found["items"]
        return items

    async def _follow(self) -> None:
        while True:
            try:
                await self._round()
            except PROBLEMS as error:
                self._lost(_words(error))
            except Exception as error:
                log.exception("the Kubernetes client failed", extra={"workload": self.place})
                self._lost(_words(error))
            else:
                continue
            await asyncio.sleep(AGAIN)

    def _lost(self, why: str) -> None:
        """What is not seen is not known: neither running nor stopped."""
        if why != self.problem:
            log.warning("workload not seen", extra={"workload": self.place, "problem": why})
        self.replicas, self.problem = None, why

    async def _round(self) -> None:
        """Read it, then watch it for a while."""
        apps, stem = client.AppsV1Api(await self._api()), _STEMS[self.kind]
        now = await getattr(apps, f"read_{stem}")(self.name, self.namespace, _request_timeout=WITHIN)
        self._see(now)
        following = watch.Watch()
        events = following.stream(
            getattr(apps, f"list_{stem}"),
            self.namespace,
            field_selector=f"metadata.name={self.name}",
            resource_version=now.metadata.resource_version,
            timeout_seconds=WATCH,
            _request_timeout=WATCH + WITHIN,
        )
        try:
            async for event in events:
                if event["type"] == "DELETED":
                    self.replicas, self.problem = None, "it was deleted"
                else:
                    self._see(event["object"])
        finally:
            await following.close()

    def _see(self, workload: Any) -> None:
        status = workload.status
        self.replicas = Replicas(
            workload.spec.replicas if workload.spec.replicas is not None else 1,
            status.replicas or 0,
            status.ready_replicas or 0,
        )
        self.problem = ""

    async def _api(self) -> client.ApiClient:
        if self._client is None:
            settings = client.Configuration()
            if self._kubeconfig is None:
                config.load_incluster_config(client_configuration=settings)
            else:
                await config.load_kube_config(str(self._kubeconfig), client_configuration=settings)
            self._client = client.ApiClient(settings)
        return self._client


_STEMS = {"StatefulSet": "namespaced_stateful_set", "Deployment": "namespaced_deployment"}


class KubernetesReplica:
    """One pod of a workload. `number`: 0 is the first that a stateful set starts and the last it stops."""

    def __init__(self, workload: Workload, number: int) -> None:
        self._workload = workload
        self._number = number

    async def look(self) -> Sight:
        self._workload.follow()
        now, number = self._workload.replicas, self._number
        if now is None:
            return Sight(Seen.UNKNOWN, f"{self._workload.place}: {self._workload.problem}")
        if now.wanted <= number and now.there <= number:
            return Sight(Seen.STOPPED)
        if now.wanted > number and now.ready > number:
            return Sight(Seen.RUNNING)
        return Sight(
            Seen.UNKNOWN, f"{now.ready} of {now.wanted} pods are ready, pod {number} may not be one of them"
        )

    async def start(self) -> None:
        """Starts those before it too: a stateful set has no gaps."""
        await self._workload.scale(self._number + 1, up=True)

    async def stop(self) -> None:
        """Only the last pod can stop."""
        now = self._workload.replicas
        if now is not None and now.wanted > self._number + 1:
            last = now.wanted - 1
            raise ActuationFailed(
                f"pod {last} of {self._workload.place} would stop before pod {self._number}"
            )
        await self._workload.scale(self._number, up=False)

    async def close(self) -> None:
        await self._workload.close()


def _words(error: BaseException) -> str:
    if isinstance(error, ApiException):
        return f"the API server answered {error.status} {error.reason}"
    return f"{type(error).__name__} {error}".strip()
