"""What is fed with bytes of strangers, and what must hold whatever they are.

A target takes one input. It raises only where a promise is broken; its own errors are part of the promise.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

from pydantic import ValidationError

from joulegate import wire
from joulegate.units import Seconds
from router.dialects import DIALECTS, Tap, dialect_of
from router.engine_metrics import read_gauges
from router.errors import GatewayError, NoSuchModel
from router.head import RequestHead
from router.intake import understand
from router.ports import Caller, Engine
from router.replica_load import decode, total
from router.sse import Cutter, events
from tests.fakes.edge import hello
from tests.fakes.recorder import fed_connection, fed_guard

Target = Callable[[bytes], None]
ROUTES = sorted(DIALECTS)
KIND = (b"content-type", b"application/json")
HEAD = RequestHead("POST", "1.1", (KIND,), dict([KIND]))
MESSAGES: Sequence[type[wire.Message]] = (
    wire.SyncRequest,
    wire.SyncReply,
    wire.LeaseRefused,
    wire.BoostRequest,
    wire.GpuList,
    wire.CapsRequest,
)


def cut(data: bytes, how: int) -> list[bytes]:
    """`data` in pieces of a length that `how` decides; 0: in one."""
    size = how or max(1, len(data))
    return [data[start : start + size] for start in range(0, len(data), size)]


def sse(data: bytes) -> None:
    """However a stream is cut, the same bytes come out, the same events are counted."""
    how, route, flags, stream = *data[:3].ljust(3, b"\0"), data[3:]
    cutter = Cutter()
    assert b"".join([*map(cutter.feed, cut(stream, how)), cutter.rest()]) == stream
    assert b"".join(events(stream)) == stream
    seen = [tapped(pieces, route, flags) for pieces in (cut(stream, how), cut(stream, 0))]
    assert seen[0] == seen[1], seen
    if b"usage" not in stream and b"error" not in stream and b"failed" not in stream:
        assert seen[0][0] == stream


def tapped(pieces: list[bytes], route: int, flags: int) -> tuple[object, ...]:
    tap = Tap(dialect_of(ROUTES[route % len(ROUTES)]), bool(flags & 1))
    out = b"".join([*map(tap.feed, pieces), tap.end()])
    return out, tap.count, tap.has_output, tap.failed, tap.usage()


def head(data: bytes) -> None:
    """An answer, or an UpstreamError; nothing doubtful is handed on."""
    asyncio.run(fed_connection(cut(data[1:], data[0] if data else 0)))


def client(data: bytes) -> None:
    """A client's connection: at most one answer a request, and it is closed after a refusal."""
    asked = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        asked += 1
        assert scope["raw_path"][:1] == b"/"
        assert [name for name, _ in scope["headers"]].count(b"host") <= 1
        await hello(scope, receive, send)

    written = asyncio.run(fed_guard(app, cut(data[1:], data[0] if data else 0)))
    assert written.count(b"HTTP/1.1 ") - written.count(b"HTTP/1.1 100 Continue") <= asked + 1
    assert b'{"error"' not in written or b"connection: close" in written


def metrics(data: bytes) -> None:
    """Garbage reads as "does not say"."""
    for engine in Engine:
        found = read_gauges(data, engine)
        for value in astuple(found):
            assert value is None or 0 <= value < 1e30, found


def sync(data: bytes) -> None:
    """What an agent, a gateway or another replica sends: a message that survives the way back, or refused."""
    for message in MESSAGES:
        try:
            found = message.model_validate_json(data)
        except ValidationError:
            continue
        assert message.model_validate_json(found.model_dump_json()) == found
    try:
        loads = decode(data).loads
    except (ValueError, TypeError):
        return
    for load in total([loads, loads]).values():
        assert load.running >= 0
        assert load.due_in <= float("inf")


def request(data: bytes) -> None:
    """A client's body: understood or refused; the model that it names can be named to it."""
    route, body = ROUTES[(data[0] if data else 0) % len(ROUTES)], bytearray(data[1:])
    try:
        call = understand("POST", route, b"", HEAD, body, Caller(), "id", Seconds(0.0))
    except GatewayError:
        return
    assert call.request.input_chars >= 0
    assert call.request.query.n >= 1
    assert NoSuchModel(call.request.query.model).body()


TARGETS: dict[str, Target] = {
    "sse": sse,
    "head": head,
    "client": client,
    "metrics": metrics,
    "sync": sync,
    "request": request,
}
