"""Shell: what the agent answers over HTTP. Messages are in `joulegate.wire`.

Driver calls are made on the event loop: the driver runs one at a time anyway, and a thread for each would
cost as much as all the rest. If one hangs, the watchdog ends us. Only opening the driver has a thread.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs

import orjson
from pydantic import ValidationError

from gpu_agent.access import Bucket, Client, Known, identify, take
from gpu_agent.caps import CapRefused
from gpu_agent.device import DeviceError, Outdated
from gpu_agent.edge import Asked, Later, Reply, Stream
from gpu_agent.lease import Refused
from gpu_agent.ledger import NoLease
from gpu_agent.managed import Cause, Json
from gpu_agent.node import Node, UnknownGpu
from joulegate.settings.agent import Scope
from joulegate.units import Seconds
from joulegate.wire import (
    VERSION,
    BoostRequest,
    CapsReply,
    CapsRequest,
    CapState,
    Message,
    ReleaseReply,
    ReleaseRequest,
    SyncRequest,
    WireError,
)

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
MAX_STREAMS = 8
RATE, BURST = 100.0, 200.0  # requests a second and client
HERTZ = (1.0, 20.0)  # of a telemetry stream
FRESH = Seconds(0.04)  # streams share readings that are younger
LOOK = 0.002  # seconds between two looks at a clock on its way

JSON = b"application/json"
TEXT = b"text/plain"
METRICS = b"text/plain; version=0.0.4; charset=utf-8"


class Refusal(Exception):
    """Ends a request with an error."""

    def __init__(self, status: int, error: str, help: str = "") -> None:  # noqa: A002
        super().__init__(error)
        self._status = status
        self._body = WireError(error=error, help=help)

    def reply(self) -> Reply:
        return Reply(self._status, JSON, _encoded(self._body))


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


Answer = Callable[[Request], tuple[int, bytes]]


class Api:
    """A `Face` over one node. `metrics`: the exposition."""

    def __init__(self, node: Node, name: str, known: Sequence[Known], metrics: Callable[[], bytes]) -> None:
        self._node = node
        self._name = name
        self._known = known
        self._metrics = metrics
        self._buckets: dict[tuple[str, bool], Bucket] = {}
        self._streams = 0
        self._looks_at: asyncio.TimerHandle | None = None  # clocks on their way
        self._newest: tuple[bytes, SyncRequest] | None = None  # mostly the next sync is the same again
        self._routes: dict[tuple[bytes, str], tuple[Scope, Answer]] = {
            (b"POST", "/v1/sync"): ("clocks", self._sync),
            (b"POST", "/v1/boost"): ("boost", self._boost),
            (b"POST", "/v1/caps"): ("caps", self._caps),
            (b"POST", "/v1/release"): ("clocks", self._release),
            (b"GET", "/v1/gpus"): ("read", self._list),
        }

    def answer(self, asked: Asked) -> Reply | Later | Stream:
        try:
            return self._answer(asked)
        except Refusal as refusal:
            return refusal.reply()

    def _answer(self, asked: Asked) -> Reply | Later | Stream:
        """Raises Refusal."""
        place = asked.method, asked.path
        if place == (b"GET", "/healthz"):
            return Reply(200, TEXT, b"ok\n")
        client = self._admit(asked)
        if place == (b"GET", "/metrics"):
            _require(client, "read")
            return Reply(200, METRICS, self._metrics())
        if place == (b"GET", "/v1/telemetry"):
            _require(client, "read")
            return self._stream(_hertz(asked.query))
        route = self._routes.get(place)
        if route is None:
            raise Refusal(404, f"no such route: {asked.method.decode('latin-1')} {asked.path}")
        needed, answer = route
        _require(client, needed)
        if asked.method == b"POST":
            _require_json(asked.headers)
        request = Request(client, asked.body, asked.received)
        if asked.path == "/v1/release":
            return _in_a_thread(answer, request)
        return _guarded(answer, request)

    def _admit(self, asked: Asked) -> Client:
        client = identify(self._known, asked.headers.get(b"authorization", b""))
        if client is None:
            raise Refusal(401, "unknown token", "send 'authorization: Bearer TOKEN'")
        now = Seconds(time.monotonic())
        key = client.name, asked.path == "/v1/boost"  # a raise never waits behind other requests
        bucket, allowed = take(self._buckets.get(key, Bucket(BURST, now)), RATE, BURST, now)
        self._buckets[key] = bucket
        if not allowed:
            raise Refusal(429, f"more than {RATE:.0f} requests a second")
        return client

    def _sync(self, request: Request) -> tuple[int, bytes]:
        """A `wire.SyncReply` or `wire.LeaseRefused`."""
        wanted = self._parsed(request)
        request.must_own(tuple(wanted.targets))
        outcome = self._node.sync(wanted, request.client.name, request.received)
        if self._looks_at is None:
            self._look_for_arrivals()
        self._node.observe()
        if isinstance(outcome, Refused):
            left = float(outcome.retry_in)
            why = {"holder": outcome.holder, "retry_in_s": left, "message": outcome.message}
            return 409, self._with_gpus(why)
        left = max(0.0, outcome.expires - time.monotonic())
        granted = {"lease": outcome.token, "expires_in_s": left, "restarts": self._node.restarts}
        return 200, self._with_gpus(granted)

    def _parsed(self, request: Request) -> SyncRequest:
        if self._newest is not None and self._newest[0] == request.body:
            return self._newest[1]
        wanted = request.parse(SyncRequest)
        self._newest = request.body, wanted
        return wanted

    def _with_gpus(self, fields: Json) -> bytes:
        """A message of ours with every GPU's state."""
        return orjson.dumps({"version": VERSION, **fields, "gpus": self._node.pictures()})

    def _look_for_arrivals(self) -> None:
        self._looks_at = None
        if self._node.look():
            self._looks_at = asyncio.get_running_loop().call_later(LOOK, self._look_for_arrivals)

    def _boost(self, request: Request) -> tuple[int, bytes]:
        """A `wire.BoostReply`."""
        wanted = request.parse(BoostRequest)
        request.must_own(tuple(wanted.floors))
        self._node.boost(wanted, request.client.name, request.received)
        self._node.observe()
        return 200, self._with_gpus({})

    def _caps(self, request: Request) -> tuple[int, bytes]:
        wanted = request.parse(CapsRequest)
        request.must_own(tuple(wanted.caps))
        try:
            caps = self._node.cap(wanted, request.client.name)
        except CapRefused as error:
            raise Refusal(409, str(error)) from error
        states = {
            uuid: CapState(cap_w=cap.set, wanted_w=cap.wanted, fault=cap.fault) for uuid, cap in caps.items()
        }
        return 200, _encoded(CapsReply(epoch=self._node.caps.epoch, caps=states))

    def _release(self, request: Request) -> tuple[int, bytes]:
        wanted = request.parse(ReleaseRequest)
        request.must_own(tuple(self._node.gpus))
        cause = Cause(f"{request.client.name}/{wanted.holder}", "release")
        return 200, _encoded(ReleaseReply(released=self._node.release(wanted.resume, cause)))

    def _list(self, _: Request) -> tuple[int, bytes]:
        """A `wire.GpuList`."""
        self._node.observe()
        infos = [info.model_dump(mode="json") for info in self._node.infos()]
        return 200, self._with_gpus({"node": self._name, "infos": infos})

    def _stream(self, hertz: float) -> Stream:
        """Server-sent events until the client leaves; the GPUs are read only while somebody listens."""
        if self._streams >= MAX_STREAMS:
            raise Refusal(429, f"there are {MAX_STREAMS} telemetry streams already")
        return self._events(hertz)

    async def _events(self, hertz: float) -> AsyncGenerator[bytes, None]:
        self._streams += 1
        try:
            while True:
                self._node.observe(FRESH)
                yield b"data: " + self._with_gpus({"node": self._name}) + b"\n\n"
                await asyncio.sleep(1.0 / hertz)
        finally:
            self._streams -= 1


async def _in_a_thread(answer: Answer, request: Request) -> Reply:
    try:
        return await asyncio.to_thread(_guarded, answer, request)
    except Refusal as refusal:
        return refusal.reply()


def _guarded(answer: Answer, request: Request) -> Reply:
    """What the node may raise, as refusals."""
    try:
        status, body = answer(request)
    except UnknownGpu as error:
        raise Refusal(400, str(error), "GET /v1/gpus lists them") from error
    except NoLease as error:
        raise Refusal(503, str(error)) from error
    except Outdated as error:
        raise Refusal(503, str(error), "the agent starts again, with the new driver's library") from error
    except DeviceError as error:
        raise Refusal(503, str(error)) from error
    return Reply(status, JSON, body)


def _require(client: Client, scope: Scope) -> None:
    if not client.may(scope):
        raise Refusal(403, f"{client.name} lacks the scope {scope!r}")


def _hertz(query: str) -> float:
    try:
        return min(HERTZ[1], max(HERTZ[0], float(parse_qs(query).get("hz", ["1"])[0])))
    except ValueError as error:
        raise Refusal(400, "hz: not a number") from error


def _require_json(headers: Mapping[bytes, bytes]) -> None:
    """A web page cannot send that to a loopback port without being asked first."""
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON:
        raise Refusal(415, "content-type must be application/json")


def _encoded(message: Message) -> bytes:
    return message.model_dump_json().encode()
