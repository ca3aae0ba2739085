"""The guard on a real socket: what is refused, and that nothing of it reaches the relay or the app."""

import asyncio

import pytest

from router.keys import KeyEntry, Keys, digest
from router.limits import EdgeLimits, RelayLimits
from router.ports import Caller, Endpoint, Engine, ModelCard
from tests.fakes.edge import Edge, edge, post, unchunked
from tests.fakes.engine import (
    LAST_CHUNK,
    STREAM_HEAD,
    FakeEngine,
    Line,
    Received,
    answer,
    chunk,
    event,
    says,
)
from tests.fakes.gate import FakeGate

NOWHERE = Endpoint("none", "pool", Engine.VLLM, "127.0.0.1", 9)
ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"


def line(first: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([first, *fields, b"", body])


GET = b"GET /v1/models HTTP/1.1"
POST = b"POST /v1/chat/completions HTTP/1.1"
HOST = b"host: x"
GZIP = b"transfer-encoding: gzip, chunked"
IDENTITY = b"transfer-encoding: identity"
TWO = b"content-length: 2"
TE = b"transfer-encoding: chunked"


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(400, line(GET), id="no host"),
        pytest.param(400, line(GET, HOST, HOST), id="two hosts"),
        pytest.param(400, line(GET, b"host: "), id="empty host"),
        pytest.param(400, line(GET, b"host: a b"), id="space in host"),
        pytest.param(400, line(GET, b"host: a@b"), id="userinfo in host"),
        pytest.param(400, line(GET, b"host: a/b"), id="path in host"),
        pytest.param(400, line(GET, b"host: a:99999"), id="port out of range"),
        pytest.param(400, line(GET, b"host: a:b"), id="port no number"),
        pytest.param(400, line(GET, b"host: a, b"), id="host list"),
        pytest.param(400, line(GET, b"host: [::1"), id="open bracket"),
        pytest.param(400, line(POST, HOST, GZIP, body=CHUNKED), id="gzip, chunked"),
        pytest.param(400, line(POST, HOST, IDENTITY, body=b"{}"), id="identity"),
        pytest.param(400, line(POST, HOST, IDENTITY, TE, body=CHUNKED), id="identity and chunked"),
        pytest.param(400, line(POST, HOST, TE, TE, body=CHUNKED), id="chunked twice"),
        pytest.param(400, line(POST, HOST, b"transfer-encoding: chunked,", body=CHUNKED), id="chunked,"),
        pytest.param(400, line(POST, HOST, b"transfer-encoding: xchunked", body=CHUNKED), id="xchunked"),
        pytest.param(400, line(POST, HOST, TWO, TE, body=CHUNKED), id="CL and TE"),
        pytest.param(400, line(POST, HOST, TE, TWO, body=CHUNKED), id="TE and CL"),
        pytest.param(400, line(POST, HOST, TWO, TWO, body=b"{}"), id="CL twice"),
        pytest.param(400, line(POST, HOST, b"content-length: 2, 2", body=b"{}"), id="CL list"),
        pytest.param(400, line(POST, HOST, b"content-length: +2", body=b"{}"), id="signed CL"),
        pytest.param(400, line(POST, HOST, b"content-length: 0x2", body=b"{}"), id="hex CL"),
        pytest.param(400, line(POST, HOST, b"content-length: " + b"9" * 30, body=b"{}"), id="giant CL"),
        pytest.param(400, line(POST, HOST, TE, body=b"f" * 30 + b"\r\n{}\r\n"), id="giant chunk size"),
        pytest.param(400, b"GET /v1/models HTTP/1.1\nhost: x\n\n", id="bare LF in the head"),
        pytest.param(400, line(POST, HOST, b"a: b\rcontent-length: 2", body=b"{}"), id="bare CR in the head"),
        pytest.param(400, line(POST, HOST, b"content_length: 2", body=b"{}"), id="content_length"),
        pytest.param(400, line(POST, HOST, b"transfer_encoding: chunked", body=CHUNKED), id="TE alias"),
        pytest.param(400, line(b"POST / HTTP/1.0", HOST, TE, body=CHUNKED), id="chunks in 1.0"),
        pytest.param(400, line(POST, HOST, b"a b: c"), id="space in a name"),
        pytest.param(400, line(POST, HOST, b"a : c"), id="space before the colon"),
        pytest.param(400, line(POST, HOST, b"a: b\0c"), id="NUL in a value"),
        pytest.param(400, line(POST, HOST, b"a: b", b" folded"), id="folded line"),
        pytest.param(400, line(POST, b" host: x"), id="space before the first name"),
        pytest.param(400, line(POST, HOST, TE, body=b"2\n{}\n0\n\n"), id="bare LF in chunks"),
        pytest.param(400, line(POST, HOST, TE, body=b"zz\r\n{}\r\n0\r\n\r\n"), id="chunk size no number"),
        pytest.param(400, line(POST, HOST, TE, body=b"-2\r\n{}\r\n0\r\n\r\n"), id="negative chunk size"),
        pytest.param(400, line(POST, HOST, TE, body=b"2\r\n{}xx0\r\n\r\n"), id="chunk too long"),
        pytest.param(400, line(GET, HOST, b"connection: upgrade", b"upgrade: websocket"), id="websocket"),
        pytest.param(400, line(GET, HOST, b"connection: upgrade", b"upgrade: h2c"), id="h2c"),
        pytest.param(405, line(b"TRACE /v1/models HTTP/1.1", HOST), id="TRACE"),
        pytest.param(405, line(b"CONNECT x:80 HTTP/1.1", HOST), id="CONNECT"),
        pytest.param(405, line(b"PURGE /v1/models HTTP/1.1", HOST), id="PURGE"),
        pytest.param(400, line(b"FROB /v1/models HTTP/1.1", HOST), id="no method"),
        pytest.param(505, line(b"GET /v1/models HTTP/2.0", HOST), id="HTTP/2.0"),
        pytest.param(505, line(b"GET /v1/models HTTP/0.9", HOST), id="HTTP/0.9"),
        pytest.param(400, line(b"GET /v1/models HTTP/1.10", HOST), id="HTTP/1.10"),
        pytest.param(400, line(b"GET /v1/models HTTP/1.2", HOST), id="HTTP/1.2"),
        pytest.param(400, line(b"GET http://other/v1/models HTTP/1.1", HOST), id="URL of another host"),
        pytest.param(400, line(b"GET file:///v1/models HTTP/1.1", HOST), id="URL of a file"),
        pytest.param(431, line(GET, HOST, *[b"a: b"] * 200), id="many fields"),
        pytest.param(431, line(GET, HOST, b"a: " + b"b" * 66_000), id="large field"),
        pytest.param(431, line(b"GET /v1/" + b"a" * 66_000 + b" HTTP/1.1", HOST), id="long target"),
        pytest.param(431, line(GET, HOST, *[b"a: " + b"b" * 1000] * 70), id="large head"),
        pytest.param(400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 preface"),
    ],
)  # fmt: skip
async def test_doubtful_requests_are_refused_once_and_go_nowhere(status: int, request_: bytes) -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            got = await asyncio.wait_for(
                it.raw(request_ + b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"), 5
            )
            await it.settled()
            assert not it.server.server_state.total_requests
        assert engine.requests == []
    assert gate.requests == []
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert got.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in got
    assert got.partition(b"\r\n\r\n")[2].startswith(b'{"error":{"message":"')


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_cuts_make_no_difference(size: int) -> None:
    request = line(
        POST, b"Host: x", b"Transfer-Encoding: CHUNKED", body=b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nhost: y\r\n\r\n"
    )
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        for start in range(0, len(request), size):
            writer.write(request[start : start + size])
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
    assert engine.requests[0].body == b"{}"
    assert engine.requests[0].headers[b"host"] == b"127.0.0.1:%d" % engine.port  # and not a trailer's


async def test_a_url_on_this_host_is_a_path() -> None:
    async with edge(FakeGate(NOWHERE, cards=[ModelCard("m")])) as it:
        got = await it.raw(line(b"GET http://x/v1/models HTTP/1.1", HOST, b"connection: close"))
    assert got.startswith(b"HTTP/1.1 200 ")


async def answers(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    """Bodies of `count` answers with a length."""
    found = []
    for _ in range(count):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append(await reader.readexactly(length))
    return found


async def echo(line: Line, received: Received) -> None:
    await line.send(answer(received.body))


@pytest.mark.parametrize("pause", [False, True])
async def test_requests_sent_ahead_are_answered_in_order(pause: bool) -> None:
    async with FakeEngine(echo) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        for number in range(5):
            writer.write(post(b'{"number":%d}' % number, close=False))
            if pause:
                await asyncio.sleep(0.001)
        assert await answers(reader, 5) == [b'{"number":%d}' % number for number in range(5)]
        writer.close()


async def test_a_doubtful_request_behind_a_good_one_does_not_harm_its_answer() -> None:
    gate_ = FakeGate(NOWHERE)
    async with FakeEngine(says(answer(b'{"good":1}'))) as engine:
        gate_.endpoints = [engine.endpoint()]
        async with edge(gate_) as it:
            got = await it.raw(post(ASK, close=False) + b"GET / HTTP/9.9\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b'{"good":1}')
    assert got.count(b"HTTP/1.1") == 1


async def test_too_many_requests_sent_ahead_end_the_connection() -> None:
    gate = FakeGate(NOWHERE)
    gate.open_.clear()
    async with edge(gate, limits=EdgeLimits(pipelined=4)) as it:
        reader, writer = await it.connect()
        writer.write(post(ASK, close=False) * 20)
        while not gate.waiting:  # noqa: ASYNC110 - the gate tells nobody
            await asyncio.sleep(0.002)
        gate.open_.set()
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert got.count(b"HTTP/1.1 502") == 1
    assert len(gate.requests) == 1


async def test_what_follows_connection_close_is_ignored() -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            got = await it.raw(post(ASK) + post(ASK))
    assert got.count(b"HTTP/1.1 200") == 1
    assert len(gate.requests) == 1


async def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    sent = STREAM_HEAD + chunk(event("a")) + chunk(event("b")) + LAST_CHUNK
    async with FakeEngine(says(sent)) as engine, edge(FakeGate(engine.endpoint())) as it:
        body = b'{"model":"m","stream":true}'
        got = await it.raw(
            line(b"POST /v1/chat/completions HTTP/1.0", b"content-length: %d" % len(body), body=body)
        )
    head, _, rest = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert rest == event("a") + event("b")


async def test_a_head_request_gets_no_body() -> None:
    engine = FakeEngine(says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"))
    async with engine, edge(FakeGate(engine.endpoint(), cards=[ModelCard("m")])) as it:
        reader, writer = await it.connect()
        for path in (b"/v1/models", b"/v1/files/x", b"/v1/models"):
            writer.write(line(b"HEAD %b HTTP/1.1" % path, HOST))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"content-length: " in head
        writer.close()
    assert [received.head.split(b" ")[0] for received in engine.requests] == [b"HEAD"]


async def test_answers_without_a_body_keep_the_connection() -> None:
    async with FakeEngine(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as engine:
        async with edge(FakeGate(engine.endpoint())) as it:
            reader, writer = await it.connect()
            for _ in range(3):
                writer.write(line(b"DELETE /v1/files/x HTTP/1.1", HOST))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 204 ")
                assert b"transfer-encoding" not in head
            writer.close()
        assert engine.connections == 1


async def test_a_client_is_told_to_go_on_before_it_sends_its_body() -> None:
    async with FakeEngine(echo) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        request = post(ASK, headers=b"expect: 100-continue\r\n")
        writer.write(request[: -len(ASK)])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(ASK)
        assert (await reader.read()).endswith(ASK)
        writer.close()
    assert b"expect" not in engine.requests[0].headers


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_large_body_arrives_whole(chunks: bool) -> None:
    body = b'{"model":"m","prompt":"' + b"x" * 3_000_000 + b'"}'
    framed = chunk(body[:1_000_000]) + chunk(body[1_000_000:]) + LAST_CHUNK if chunks else body
    length = TE if chunks else b"content-length: %d" % len(body)
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        request = line(b"POST /v1/completions HTTP/1.1", HOST, length, b"connection: close", body=framed)
        assert (await it.raw(request)).endswith(b"{}")
    assert engine.requests[0].body == body


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_body_over_the_limit_is_413(chunks: bool) -> None:
    body = b"x" * 300_000
    framed = chunk(body) + LAST_CHUNK if chunks else body
    length = TE if chunks else b"content-length: %d" % len(body)
    gate = FakeGate(NOWHERE)
    async with edge(gate, relay=RelayLimits(body=100_000)) as it:
        got = await it.raw(line(POST, HOST, length, body=framed))
        await it.settled()
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in got
    assert gate.requests == []


async def test_the_app_behind_the_guard_is_served_as_before() -> None:
    async with edge(FakeGate(NOWHERE)) as it:
        reader, writer = await it.connect()
        for body in (b"", b"hello", b"x" * 500_000):
            writer.write(post(body, path="/admin", close=False))
            assert await answers(reader, 1) == [body]
        writer.close()


# timers


async def lapse(limits: EdgeLimits, *parts: bytes, wait: float = 0.0) -> bytes:
    """What a client gets that sends `parts`, `wait` seconds apart, and then only listens."""
    async with edge(FakeGate(NOWHERE), limits=limits) as it:
        reader, writer = await it.connect()
        for part in parts:
            writer.write(part)
            await asyncio.sleep(wait)
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await it.settled()
        return got


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    assert await lapse(EdgeLimits(idle=0.1)) == b""


async def test_a_kept_connection_that_falls_idle_is_closed() -> None:
    got = await lapse(EdgeLimits(idle=0.1), line(GET, HOST))
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_a_slow_head_is_timed_out() -> None:
    got = await lapse(EdgeLimits(head=0.1), b"GET / HT", b"TP/1.1\r\nho", b"st: x\r\na", wait=0.05)
    assert got.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin"])
async def test_a_slow_body_is_timed_out(path: str) -> None:
    got = await lapse(EdgeLimits(body=0.1), post(b"x" * 100, path)[:-50], b"x", b"x", wait=0.06)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert got.count(b"HTTP/1.1") == 1


async def test_a_body_that_keeps_its_rate_is_not_timed_out() -> None:
    limits = EdgeLimits(body=0.05, body_rate=20.0)
    got = await lapse(limits, post(b"x" * 50, "/admin")[:-40], *[b"xxxx"] * 10, wait=0.03)
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_a_request_that_waits_for_its_answer_is_not_timed_out() -> None:
    gate = FakeGate(NOWHERE)
    gate.open_.clear()
    async with edge(gate, limits=EdgeLimits(idle=0.05, head=0.05, body=0.05)) as it:
        task = asyncio.create_task(it.raw(post(ASK)))
        await asyncio.sleep(0.3)
        gate.open_.set()
        assert (await task).startswith(b"HTTP/1.1 502 ")


# routes and keys


async def status_of(it: Edge, path: bytes, headers: bytes = b"", body: bytes = ASK) -> int:
    got = await it.raw(post(body, path.decode("latin-1"), headers))
    return int(got.split(b" ")[1])


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../sleep",
        b"/v1/./models/../sleep",
        b"/v1//sleep",
        b"/v1/%2e%2e/sleep",
        b"/v1/..%2fsleep",
        b"/v1/%2e%2e%2fsleep",
        b"/v1/x/..;/sleep",
        b"/v1;/sleep",
        b"/v1/..\\sleep",
        b"/v1/load_lora_adapter",
        b"/v1/Load_LoRA_adapter/",
        b"/v1/x%00y",
        b"/v1/",
        b"/generate;x",
        b"/generate/",
        b"/tokenize/../sleep",
    ],
)
async def test_no_spelling_reaches_an_engines_own_routes(path: bytes) -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        got = await it.raw(post(ASK, path.decode()))
        assert b"sleeping" not in got
    assert engine.requests == []


@pytest.mark.parametrize(
    "path", [b"/sleep", b"/wake_up", b"/metrics", b"/V1/chat/completions", b"//v1/models"]
)
async def test_other_routes_belong_to_the_app(path: bytes) -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine, edge(FakeGate(engine.endpoint())) as it:
        assert await status_of(it, path) == 200  # the app's own answer
    assert engine.requests == []


async def test_only_a_known_key_is_served_and_it_never_reaches_the_engine() -> None:
    keys = Keys([KeyEntry(digest("sk-good"), Caller("tenant", frozenset({"m"})))])
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint(), cards=[ModelCard("m"), ModelCard("other")])
        async with edge(gate, keys=keys) as it:
            path = b"/v1/chat/completions"
            assert await status_of(it, path) == 401
            assert await status_of(it, path, b"authorization: Bearer sk-bad\r\n") == 401
            assert await status_of(it, path, b"authorization: Basic sk-good\r\n") == 401
            assert await status_of(it, path, b"authorization: Bearer sk-good\r\nx-api-key: sk-bad\r\n") == 401
            assert engine.requests == []
            assert await status_of(it, path, b"authorization: bearer sk-good\r\n") == 200
            assert await status_of(it, path, b"x-api-key: sk-good\r\n") == 200
            other = ASK.replace(b'"m"', b'"other"')
            assert await status_of(it, path, b"x-api-key: sk-good\r\n", other) == 403
            assert await status_of(it, path, b"x-api-key: sk-good\r\n", b"{") == 403
            models = await it.raw(line(GET, HOST, b"connection: close", b"x-api-key: sk-good"))
            assert b'"id":"m"' in models
            assert b"other" not in models
    assert [request.caller.name for request in gate.requests] == ["tenant", "tenant"]
    for received in engine.requests:
        assert b"sk-good" not in received.head


async def test_an_unauthorised_client_is_not_read() -> None:
    keys = Keys([KeyEntry(digest("sk-good"), Caller("tenant"))])
    async with edge(FakeGate(NOWHERE), keys=keys) as it:
        reader, writer = await it.connect()
        writer.write(post(b"x" * 10_000_000)[:200])
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert got.startswith(b"HTTP/1.1 401 ")


async def test_models_are_listed_and_retrieved() -> None:
    cards = [ModelCard("org/m", max_model_len=2048), ModelCard("n")]
    async with edge(FakeGate(NOWHERE, cards=cards)) as it:
        one = await it.raw(line(b"GET /v1/models/org%2Fm HTTP/1.1", HOST, b"connection: close"))
        same = await it.raw(line(b"GET /v1/models/org/m HTTP/1.1", HOST, b"connection: close"))
        none = await it.raw(line(b"GET /v1/models/x HTTP/1.1", HOST, b"connection: close"))
        wrong = await it.raw(post(b"{}", "/v1/models"))
    assert one.endswith(
        b'{"id":"org/m","object":"model","created":0,"owned_by":"joulegate","max_model_len":2048}'
    )
    assert one.partition(b"\r\n\r\n")[2] == same.partition(b"\r\n\r\n")[2]
    assert none.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"model_not_found"' in none
    assert wrong.startswith(b"HTTP/1.1 405 ")


async def test_a_stream_starts_again_on_a_kept_connection() -> None:
    sent = STREAM_HEAD + chunk(event("a")) + LAST_CHUNK
    async with FakeEngine(says(sent)) as engine, edge(FakeGate(engine.endpoint())) as it:
        reader, writer = await it.connect()
        for _ in range(3):
            writer.write(post(b'{"model":"m","stream":true}', close=False))
            got = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)
            assert unchunked(got.partition(b"\r\n\r\n")[2]) == event("a")
        writer.close()
    assert engine.connections == 1


async def test_a_model_whose_name_is_no_text_is_unknown_like_any_other() -> None:
    gate = FakeGate(NOWHERE)
    gate.unknown_models = {"\ud800"}
    async with edge(gate) as it:
        answered = await it.raw(post(b'{"model":"\\ud800","messages":[]}'))
    assert answered.startswith(b"HTTP/1.1 404 ")
    assert b"the model '?' does not exist" in answered
