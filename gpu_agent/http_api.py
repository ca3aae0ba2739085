"""Shell: the agent's HTTP face: a plain ASGI app. Messages are in `joulegate.wire`.

Driver calls are made on the event loop: the driver runs one at a time anyway, and a thread for each would
cost as much as all the rest. If one hangs, the watchdog ends us. Only opening the driver has a thread.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qs

from pydantic import ValidationError

from gpu_agent.access import Bucket, Client, Known, identify, take
from gpu_agent.caps import CapRefused
from gpu_agent.device import DeviceError, Outdated
from gpu_agent.lease import Refused
from gpu_agent.managed import Cause
from gpu_agent.node import Node, NoLease, UnknownGpu
from joulegate.settings.agent import Scope
from joulegate.units import Seconds
from joulegate.wire import (
    BoostReply,
    BoostRequest,
    CapsReply,
    CapsRequest,
    CapState,
    GpuList,
    LeaseRefused,
    Message,
    ReleaseReply,
    ReleaseRequest,
    SyncReply,
    SyncRequest,
    WireError,
)

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
MAX_BODY = 64 * 1024  # bytes
MAX_STREAMS = 8
RATE, BURST = 100.0, 200.0  # requests a second and client
HERTZ = (1.0, 20.0)  # of a telemetry stream
FRESH = Seconds(0.04)  # streams share readings that are younger
LOOK = 0.002  # seconds between two looks at a clock on its way

AsgiScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refusal(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, error: str, help: str = "") -> None:  # noqa: A002
        super().__init__(error)
        self.status = status
        self.body = WireError(error=error, help=help)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body read."""

    client: Client
    body: bytes
    received: Seconds

    def parse(self, shape: type[M]) -> M:
        try:
            return shape.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise Refusal(400, f"{place or 'body'}: {first['msg']}") from error

    def must_own(self, gpus: Sequence[str]) -> None:
        forbidden = self.client.forbidden(gpus)
        if forbidden:
            raise Refusal(403, f"{self.client.name} may not touch {', '.join(forbidden)}")


Answer = Callable[[Request], tuple[int, Message]]


class Api:
    """`closing` ends telemetry streams, so that the server can stop."""

    def __init__(self, node: Node, name: str, known: Sequence[Known], metrics: Callable[[], bytes]) -> None:
        self.closing = asyncio.Event()
        self._node = node
        self._name = name
        self._known = known
        self._metrics = metrics
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._streams = 0
        self._looks_at: asyncio.TimerHandle | None = None  # clocks on their way
        self._routes: dict[tuple[str, str], tuple[Scope, Answer]] = {
            ("POST", "/v1/sync"): ("clocks", self._sync),
            ("POST", "/v1/boost"): ("boost", self._boost),
            ("POST", "/v1/caps"): ("caps", self._caps),
            ("POST", "/v1/release"): ("clocks", self._release),
            ("GET", "/v1/gpus"): ("read", self._list),
        }

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, send)
        except Refusal as refusal:
            await _reply(send, refusal.status, refusal.body)

    async def _answer(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/healthz"):
            await _send(send, 200, b"text/plain", b"ok\n")
            return
        headers = dict(scope["headers"])
        client = self._admit(path, headers)
        if (method, path) == ("GET", "/metrics"):
            _require(client, "read")
            await _send(send, 200, b"text/plain; version=0.0.4; charset=utf-8", self._metrics())
            return
        if (method, path) == ("GET", "/v1/telemetry"):
            _require(client, "read")
            await self._stream(_hertz(scope["query_string"]), receive, send)
            return
        route = self._routes.get((method, path))
        if route is None:
            raise Refusal(404, f"no such route: {method} {path}")
        needed, answer = route
        _require(client, needed)
        received = Seconds(time.monotonic())
        body = await _body(headers, receive) if method == "POST" else b""
        request = Request(client, body, received)
        if path == "/v1/release":
            status, message = await asyncio.to_thread(_guarded, answer, request)
        else:
            status, message = _guarded(answer, request)
        await _reply(send, status, message)

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> Client:
        client = identify(self._known, headers.get(b"authorization", b""))
        if client is None:
            raise Refusal(401, "unknown token", "send 'authorization: Bearer TOKEN'")
        now = Seconds(time.monotonic())
        key = (
            client.name,
            "boost" if path == "/v1/boost" else "",
        )  # a raise never waits behind other requests
        bucket, allowed = take(self._buckets.get(key, Bucket(BURST, now)), RATE, BURST, now)
        self._buckets[key] = bucket
        if not allowed:
            raise Refusal(429, f"more than {RATE:.0f} requests a second")
        return client

    def _sync(self, request: Request) -> tuple[int, Message]:
        wanted = request.parse(SyncRequest)
        request.must_own(tuple(wanted.targets))
        outcome = self._node.sync(wanted, request.client.name, request.received)
        if self._looks_at is None:
            self._look_for_arrivals()
        self._node.observe()
        gpus = self._node.states()
        now = time.monotonic()
        if isinstance(outcome, Refused):
            return 409, LeaseRefused(
                holder=outcome.holder, retry_in_s=float(outcome.retry_in), message=outcome.message, gpus=gpus
            )
        return 200, SyncReply(
            lease=outcome.token,
            expires_in_s=max(0.0, outcome.expires - now),
            restarts=self._node.restarts,
            gpus=gpus,
        )

    def _look_for_arrivals(self) -> None:
        self._looks_at = None
        if self._node.look():
            self._looks_at = asyncio.get_running_loop().call_later(LOOK, self._look_for_arrivals)

    def _boost(self, request: Request) -> tuple[int, Message]:
        wanted = request.parse(BoostRequest)
        request.must_own(tuple(wanted.floors))
        self._node.boost(wanted, request.client.name, request.received)
        self._node.observe()
        return 200, BoostReply(gpus=self._node.states())

    def _caps(self, request: Request) -> tuple[int, Message]:
        wanted = request.parse(CapsRequest)
        request.must_own(tuple(wanted.caps))
        try:
            caps = self._node.cap(wanted, request.client.name)
        except CapRefused as error:
            raise Refusal(409, str(error)) from error
        states = {
            uuid: CapState(cap_w=cap.set, wanted_w=cap.wanted, fault=cap.fault) for uuid, cap in caps.items()
        }
        return 200, CapsReply(epoch=self._node.caps.epoch, caps=states)

    def _release(self, request: Request) -> tuple[int, Message]:
        wanted = request.parse(ReleaseRequest)
        request.must_own(tuple(self._node.gpus))
        cause = Cause(f"{request.client.name}/{wanted.holder}", "release")
        return 200, ReleaseReply(released=self._node.release(wanted.resume, cause))

    def _list(self, _: Request) -> tuple[int, Message]:
        self._node.observe()
        return 200, self._gpu_list()

    def _gpu_list(self, infos: bool = True) -> GpuList:
        return GpuList(node=self._name, infos=self._node.infos() if infos else (), gpus=self._node.states())

    async def _stream(self, hertz: float, receive: Receive, send: Send) -> None:
        """Server-sent events until the client leaves; the GPUs are read only while somebody listens."""
        if self._streams >= MAX_STREAMS:
            raise Refusal(429, f"there are {MAX_STREAMS} telemetry streams already")
        self._streams += 1
        ends = [asyncio.ensure_future(_left(receive)), asyncio.ensure_future(self.closing.wait())]
        try:
            await send(_start(200, b"text/event-stream", [(b"cache-control", b"no-store")]))
            while True:
                self._node.observe(FRESH)
                event = b"data: " + self._gpu_list(infos=False).model_dump_json().encode() + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
                done, _ = await asyncio.wait(ends, timeout=1.0 / hertz, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    break
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._streams -= 1
            for end in ends:
                end.cancel()


def _guarded(answer: Answer, request: Request) -> tuple[int, Message]:
    """What the node may raise, as refusals."""
    try:
        return answer(request)
    except UnknownGpu as error:
        raise Refusal(400, str(error), "GET /v1/gpus lists them") from error
    except NoLease as error:
        raise Refusal(503, str(error)) from error
    except Outdated as error:
        raise Refusal(503, str(error), "the agent starts again, with the new driver's library") from error
    except DeviceError as error:
        raise Refusal(503, str(error)) from error


def _require(client: Client, scope: Scope) -> None:
    if not client.may(scope):
        raise Refusal(403, f"{client.name} lacks the scope {scope!r}")


def _hertz(query: bytes) -> float:
    try:
        return min(HERTZ[1], max(HERTZ[0], float(parse_qs(query.decode("latin-1")).get("hz", ["1"])[0])))
    except ValueError as error:
        raise Refusal(400, "hz: not a number") from error


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    # JSON only: a web page cannot send that to a loopback port without being asked first.
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal(415, "content-type must be application/json")
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the body is cut short")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise Refusal(413, f"a body may have {MAX_BODY} bytes")
    return body


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(send: Send, status: int, message: Message | WireError) -> None:
    await _send(send, status, b"application/json", message.model_dump_json().encode())


async def _send(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    await send(_start(status, content_type, [(b"content-length", str(len(body)).encode())]))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", content_type), *headers],
    }
