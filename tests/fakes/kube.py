"""An API server with stateful sets, deployments and autoscalers, whose pods take a while to become ready."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN = "let-me-in"
Json = dict[str, Any]


@dataclass
class FakeSet:
    """A workload. Its pods come and go one at a time, `pause` seconds each, the first pod first."""

    kind: str
    name: str
    wanted: int = 1
    there: int = 1
    pause: float = 0.01
    version: int = 1
    changes: "list[asyncio.Queue[Json | None]]" = field(default_factory=list)

    def picture(self) -> Json:
        return {
            "apiVersion": "apps/v1",
            "kind": self.kind,
            "metadata": {"name": self.name, "namespace": "llm", "resourceVersion": str(self.version)},
            "spec": {
                "replicas": self.wanted,
                "selector": {"matchLabels": {"app": self.name}},
                "serviceName": self.name,
                "template": {},
            },
            "status": {"replicas": self.there, "readyReplicas": self.there},
        }

    def scale(self) -> Json:
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"name": self.name, "namespace": "llm", "resourceVersion": str(self.version)},
            "spec": {"replicas": self.wanted},
            "status": {"replicas": self.there},
        }

    def change(self, wanted: int | None = None, there: int | None = None) -> None:
        self.wanted = self.wanted if wanted is None else wanted
        self.there = self.there if there is None else there
        self.version += 1
        for each in self.changes:
            each.put_nowait({"type": "MODIFIED", "object": self.picture()})

    async def control(self) -> None:
        """What the controller of workloads does."""
        while self.there != self.wanted:
            await asyncio.sleep(self.pause)
            self.change(there=self.there + (1 if self.there < self.wanted else -1))


class FakeCluster:
    """`rivals`: how many times somebody else changes a workload between a read of its scale and the write."""

    def __init__(self, *sets: FakeSet) -> None:
        self.sets = {(each.kind, each.name): each for each in sets}
        self.autoscalers: list[Json] = []
        self.scaled_objects: list[Json] | None = None  # None: KEDA is not installed
        self.rivals = 0
        self.watches = 0
        self.failing = False
        self.url = ""
        self._controlling: set[asyncio.Task[None]] = set()

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        path = folder / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(json.dumps(document))
        return path

    def cut_watches(self, error: Json | None = None) -> None:
        """End every watch, with an error event or without a word."""
        for each in self.sets.values():
            for queue in each.changes:
                if error is not None:
                    queue.put_nowait({"type": "ERROR", "object": error})
                queue.put_nowait(None)

    @asynccontextmanager
    async def serving(self) -> "AsyncIterator[FakeCluster]":
        app = web.Application(middlewares=[self._checked])
        apps = "/apis/apps/v1/namespaces/llm/{plural}"
        app.router.add_get(apps, self._list)
        app.router.add_get(apps + "/{name}", self._read)
        app.router.add_get(apps + "/{name}/scale", self._read_scale)
        app.router.add_put(apps + "/{name}/scale", self._write_scale)
        hpas = "/apis/autoscaling/v2/namespaces/llm/horizontalpodautoscalers"
        app.router.add_get(hpas, self._autoscalers)
        app.router.add_get("/apis/keda.sh/v1alpha1/namespaces/llm/scaledobjects", self._scaled_objects)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.cut_watches()
            for task in self._controlling:
                task.cancel()
            await asyncio.gather(*self._controlling, return_exceptions=True)
            await runner.cleanup()

    @web.middleware
    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if self.failing:
            return _status(500, "InternalError")
        answer: web.StreamResponse = await handler(request)
        return answer

    def _set(self, request: web.Request) -> FakeSet | None:
        kind = {"statefulsets": "StatefulSet", "deployments": "Deployment"}[request.match_info["plural"]]
        name = request.match_info.get("name", "")
        if not name:
            name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        return self.sets.get((kind, name))

    async def _read(self, request: web.Request) -> web.StreamResponse:
        found = self._set(request)
        return _status(404, "NotFound") if found is None else web.json_response(found.picture())

    async def _read_scale(self, request: web.Request) -> web.StreamResponse:
        found = self._set(request)
        if found is None:
            return _status(404, "NotFound")
        answer = web.json_response(found.scale())
        if self.rivals:
            self.rivals -= 1
            found.change()
        return answer

    async def _write_scale(self, request: web.Request) -> web.StreamResponse:
        found, body = self._set(request), await request.json()
        if found is None:
            return _status(404, "NotFound")
        if body["metadata"]["resourceVersion"] != str(found.version):
            return _status(409, "Conflict")
        found.change(wanted=body["spec"]["replicas"])
        task = asyncio.create_task(found.control())
        self._controlling.add(task)
        task.add_done_callback(self._controlling.discard)
        return web.json_response(found.scale())

    async def _list(self, request: web.Request) -> web.StreamResponse:
        """Only ever watched."""
        assert request.query.get("watch") in ("true", "True"), "nobody lists"
        found = self._set(request)
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        await answer.prepare(request)
        self.watches += 1
        if found is None:
            return answer
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        found.changes.append(queue)
        if int(request.query["resourceVersion"]) < found.version:
            queue.put_nowait({"type": "MODIFIED", "object": found.picture()})
        try:
            while (event := await queue.get()) is not None:
                await answer.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            found.changes.remove(queue)
        with contextlib.suppress(ConnectionError):
            await answer.write_eof()
        return answer

    async def _autoscalers(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"apiVersion": "autoscaling/v2", "kind": "List", "metadata": {}, "items": self.autoscalers}
        )

    async def _scaled_objects(self, _: web.Request) -> web.StreamResponse:
        if self.scaled_objects is None:
            return _status(404, "NotFound")
        return web.json_response({"items": self.scaled_objects})


def autoscaler(kind: str, name: str) -> Json:
    return {
        "metadata": {"name": "by-load"},
        "spec": {"maxReplicas": 8, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": name}},
    }


def scaled_object(name: str, kind: str | None) -> Json:
    target = {"name": name} if kind is None else {"name": name, "kind": kind}
    return {"metadata": {"name": "by-queue"}, "spec": {"scaleTargetRef": target}}


def _status(code: int, reason: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return web.json_response({**body, "message": reason}, status=code)
