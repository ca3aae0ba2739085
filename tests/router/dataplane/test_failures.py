"""What the client sees, and what the gate is told, when an instance fails or breaks the protocol."""

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from joulegate.units import Seconds
from router.connection import Connection
from router.keys import KeyEntry, Keys, digest
from router.limits import UpstreamLimits
from router.ports import Caller, Ending, Endpoint, Engine, Recall
from router.upstream import UpstreamPool, opened
from tests.fakes.edge import Edge, edge, post, unchunked
from tests.fakes.engine import (
    DONE,
    LAST_CHUNK,
    ROLE,
    STREAM_HEAD,
    FakeEngine,
    Line,
    Received,
    Script,
    answer,
    chunk,
    closes_after,
    dies_after,
    event,
    hangs_after,
    later,
    says,
)
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ASK_STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
GOOD = answer(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}')
ERROR_EVENT = (
    b'data: {"error": {"message": "boom", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
)


async def ask(it: Edge, body: bytes = ASK, path: str = "/v1/chat/completions") -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    head, _, rest = (await it.raw(post(body, path))).partition(b"\r\n\r\n")
    await asyncio.wait_for(it.settled(), 5)
    return head, rest


BEFORE_FIRST_BYTE = [
    pytest.param(dies_after(b""), id="reset before the head"),
    pytest.param(closes_after(b""), id="closed before the head"),
    pytest.param(closes_after(b"HTTP/1.1 200 OK\r\ncontent-le"), id="closed in the head"),
    pytest.param(dies_after(STREAM_HEAD), id="reset after the head"),
    pytest.param(says(answer(b"")), id="empty 200 with a length"),
    pytest.param(says(STREAM_HEAD + LAST_CHUNK), id="empty 200 in chunks"),
    pytest.param(closes_after(b"HTTP/1.1 200 OK\r\n\r\n"), id="empty 200 until close"),
]


@pytest.mark.parametrize("script", BEFORE_FIRST_BYTE)
@pytest.mark.parametrize("body", [ASK, ASK_STREAM])
async def test_a_failure_before_the_first_byte_is_one_openai_error(script: Script, body: bytes) -> None:
    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            head, rest = await ask(it, body)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b'"type":"upstream_error"' in rest
    assert b'"code":"instance_down"' in rest
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


@pytest.mark.parametrize("script", BEFORE_FIRST_BYTE)
async def test_a_failure_before_the_first_byte_is_tried_on_another_instance(script: Script) -> None:
    async with FakeEngine(script) as bad, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(bad.endpoint("bad"), good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            head, rest = await ask(it)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-joulegate-instance: good" in head
    assert rest == GOOD.partition(b"\r\n\r\n")[2]
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN, Ending.OK]
    assert len(bad.requests) == len(good.requests) == 1


async def test_what_is_logged_names_neither_keys_nor_prompts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys([KeyEntry(digest("sk-mine"), Caller("tenant"))])
    body = ASK.replace(b"hello", b"a private word")
    async with FakeEngine(dies_after(b"")) as engine, FakeEngine(says(answer(b"", b"500 Oh"))) as other:
        gate = FakeGate(engine.endpoint(), other.endpoint("two"), retries=1)
        async with edge(gate, keys=keys) as it:
            for key in (b"sk-mine", b"sk-theirs"):
                await it.raw(post(body, headers=b"authorization: Bearer %b\r\n" % key))
            await it.raw(post(body, headers=b"x-api-key: sk-mine\r\nx-slo-ttft-ms: private\r\n"))
            await it.settled()
    said = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "private" not in said
    assert "sk-" not in said


async def test_only_one_other_instance_is_tried() -> None:
    async with FakeEngine(closes_after(b"")) as bad, FakeEngine(closes_after(b"")) as worse:
        gate = FakeGate(bad.endpoint(), worse.endpoint(), retries=5)
        async with edge(gate) as it:
            head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert len(gate.reports) == 2


BUSY = b'{"error":{"message":"The engine is busy","type":"Service Unavailable","param":null,"code":503}}'
FAILED = b'{"error":"boom","error_type":"generation"}'
INVALID = b'{"error":"bad","error_type":"validation"}'
FULL = b'{"error":"Model is overloaded","error_type":"overloaded"}'


@pytest.mark.parametrize(
    ("status", "body", "ending", "retried"),
    [
        (b"503 Service Unavailable", BUSY, Ending.UPSTREAM_BUSY, True),
        (b"429 Too Many Requests", FULL, Ending.UPSTREAM_BUSY, True),
        (b"424 Failed Dependency", FAILED, Ending.UPSTREAM_ERROR, True),
        (b"500 Internal Server Error", b"oops", Ending.UPSTREAM_ERROR, True),
        (b"400 Bad Request", b'{"error":{"message":"m","type":"t"}}', Ending.CLIENT_ERROR, False),
        (b"404 Not Found", b'{"detail":"Not Found"}', Ending.CLIENT_ERROR, False),
        (b"422 Unprocessable Entity", INVALID, Ending.CLIENT_ERROR, False),
    ],
)  # fmt: skip
async def test_an_error_answer_is_tried_elsewhere_unless_it_is_the_clients_fault(
    status: bytes, body: bytes, ending: Ending, retried: bool
) -> None:
    async with FakeEngine(says(answer(body, status))) as bad, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(bad.endpoint("bad"), good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it)
    assert gate.reports[0].ending is ending
    assert head.startswith(b"HTTP/1.1 200 " if retried else b"HTTP/1.1 " + status[:3])
    assert len(good.requests) == retried


async def test_without_another_instance_the_engines_own_error_is_passed_on() -> None:
    async with (
        FakeEngine(says(answer(BUSY, b"503 Service Unavailable"))) as engine,
        edge(FakeGate(engine.endpoint())) as it,
    ):
        head, rest = await ask(it)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert rest == BUSY


async def test_an_instance_that_refuses_connections_is_down() -> None:
    async with FakeEngine(says(GOOD)) as gone:
        pass
    gate = FakeGate(gone.endpoint())
    async with edge(gate) as it:
        head, _rest = await ask(it)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert gate.reports[0].ending is Ending.UPSTREAM_DOWN
    assert gate.slots[0].sent_at == []


async def test_a_request_that_may_not_run_twice_goes_elsewhere_only_if_it_was_not_sent() -> None:
    async with FakeEngine(says(GOOD)) as gone:
        pass
    async with FakeEngine(says(GOOD)) as good, FakeEngine(closes_after(b"")) as bad:
        gate = FakeGate(gone.endpoint(), good.endpoint(), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it, b"{}", "/v1/files")
            assert head.startswith(b"HTTP/1.1 200 ")
        gate = FakeGate(bad.endpoint(), good.endpoint(), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it, b"{}", "/v1/files")
            assert head.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/v1/audio/transcriptions"])
async def test_what_is_computed_from_its_body_alone_is_tried_elsewhere(path: str) -> None:
    async with FakeEngine(closes_after(b"")) as bad, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(bad.endpoint("bad"), good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it, b"{}", path)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-joulegate-instance: good" in head
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN, Ending.OK]


# after the first byte


AFTER_FIRST_BYTE = [
    pytest.param(dies_after(STREAM_HEAD + chunk(ROLE) + chunk(event("a"))), id="reset"),
    pytest.param(closes_after(STREAM_HEAD + chunk(ROLE) + chunk(event("a"))), id="no last chunk"),
    pytest.param(closes_after(STREAM_HEAD + chunk(ROLE) + chunk(event("a"))[:-9]), id="cut in a chunk"),
    pytest.param(
        closes_after(STREAM_HEAD + chunk(ROLE + event("a") + event("b")[:20])), id="cut in an event"
    ),
    pytest.param(later(STREAM_HEAD + chunk(ROLE) + chunk(event("a")), b"zzz\r\n"), id="bad chunk"),
]


@pytest.mark.parametrize("script", AFTER_FIRST_BYTE)
async def test_a_stream_that_breaks_ends_in_one_error_event(script: Script) -> None:
    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint(), retries=1)
        async with edge(gate) as it:
            _, rest = await ask(it, ASK_STREAM)
    body = unchunked(rest)
    assert body.startswith(ROLE)
    assert body.endswith(DONE)
    assert body.count(b'data: {"error":{"message":"') == 1
    for one in body.split(b"\n\n")[:-1]:
        assert one.startswith(b"data: ")
        assert one.endswith((b"}", b"[DONE]"))
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/responses", b'{"model":"m","stream":true}', b'event: error\ndata: {"type":"error"'),
        ("/v1/messages", b'{"model":"m","stream":true}', b'event: error\ndata: {"type":"error","error"'),
        ("/v1/completions", b'{"model":"m","prompt":"hi","stream":true}', b'data: {"error":'),
        ("/generate_stream", b'{"inputs":"hi"}', b'data: {"error":"'),
    ],
)  # fmt: skip
async def test_the_error_event_speaks_the_routes_dialect(path: str, body: bytes, last: bytes) -> None:
    async with (
        FakeEngine(dies_after(STREAM_HEAD + chunk(b"event: x\ndata: {}\n\n"))) as engine,
        edge(FakeGate(engine.endpoint(engine=Engine.TGI))) as it,
    ):
        _, rest = await ask(it, body, path)
    events = unchunked(rest).split(b"\n\n")[:-1]
    assert events[1].startswith(last)
    assert (events[-1] == b"data: [DONE]") == (path == "/v1/completions")


async def test_an_error_event_then_done_is_a_failure_and_passes_unchanged() -> None:
    sent = [ROLE, event("a"), ERROR_EVENT, DONE]
    async with FakeEngine(says(STREAM_HEAD + b"".join(map(chunk, sent)) + LAST_CHUNK)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            _, rest = await ask(it, ASK_STREAM)
    assert unchunked(rest) == b"".join(sent)
    assert gate.reports[0].ending is Ending.UPSTREAM_ERROR
    assert "boom" in gate.reports[0].error


async def test_a_stream_without_done_is_a_success() -> None:
    sent = [ROLE, event("a")]
    async with FakeEngine(says(STREAM_HEAD + b"".join(map(chunk, sent)) + LAST_CHUNK)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            _, rest = await ask(it, ASK_STREAM)
    assert unchunked(rest) == b"".join(sent)
    assert gate.reports[0].ending is Ending.OK


async def test_a_json_answer_that_is_cut_is_seen_to_be_cut() -> None:
    async with FakeEngine(closes_after(answer(b'{"a":1}')[:-3])) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            head, rest = await ask(it)
    assert b"content-length: 7" in head
    assert len(rest) < 7
    assert gate.reports[0].ending is Ending.UPSTREAM_DOWN


# silence


async def test_an_instance_that_never_answers_is_given_up() -> None:
    async with FakeEngine(hangs_after(b"")) as engine:
        gate = FakeGate(engine.endpoint(), retries=1)
        async with edge(gate, upstream=UpstreamLimits(head=0.1)) as it:
            head, rest = await ask(it)
            assert engine.open_connections == 0
    assert head.startswith(b"HTTP/1.1 504 ")
    assert b"instance_silent" in rest
    assert [report.ending for report in gate.reports] == [Ending.TIMEOUT]


async def test_an_instance_that_drips_its_head_is_given_up() -> None:
    async def script(line: Line, _: Received) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\nx: ")
        while not line.writer.is_closing():
            await line.send(b"y")
            await asyncio.sleep(0.02)

    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, upstream=UpstreamLimits(head=0.2, silence=1000.0)) as it:
            head, _ = await asyncio.wait_for(ask(it), 30)
    assert head.startswith(b"HTTP/1.1 504 ")
    assert [report.ending for report in gate.reports] == [Ending.TIMEOUT]


async def test_an_instance_that_falls_silent_in_a_stream_is_given_up() -> None:
    async with FakeEngine(hangs_after(STREAM_HEAD + chunk(event("a")))) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, upstream=UpstreamLimits(silence=0.1)) as it:
            _, rest = await ask(it, ASK_STREAM)
    assert b"in time" in unchunked(rest)
    assert gate.reports[0].ending is Ending.TIMEOUT


# kept connections


async def test_connections_are_kept_and_used_again() -> None:
    async with FakeEngine(says(GOOD)) as engine:
        async with edge(FakeGate(engine.endpoint())) as it:
            for _ in range(3):
                await ask(it)
        assert (engine.connections, len(engine.requests)) == (1, 3)


async def test_a_kept_connection_expires_before_the_engine_closes_it() -> None:
    async with FakeEngine(says(GOOD)) as engine:
        async with edge(FakeGate(engine.endpoint()), upstream=UpstreamLimits(keep_alive=0.05)) as it:
            await ask(it)
            while engine.open_connections:  # noqa: ASYNC110 - the engine's side closes in its own time
                await asyncio.sleep(0.01)
            await ask(it)
        assert engine.connections == 2


def good_once(then: bytes = b"") -> Script:
    """The first connection answers once; asked again it closes. Others answer."""
    asked: list[int] = []

    async def script(line: Line, _: Received) -> None:
        asked.append(line.number)
        if line.number == 0 and asked.count(0) > 1:
            await line.send(then)
            line.writer.close()
        else:
            await line.send(GOOD)

    return script


async def test_a_kept_connection_that_dies_unanswered_costs_the_client_nothing() -> None:
    async with FakeEngine(good_once()) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            await ask(it)
            head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert [report.ending for report in gate.reports] == [Ending.OK, Ending.OK]
    assert (engine.connections, len(engine.requests)) == (2, 3)


async def test_a_kept_connection_that_dies_after_a_byte_is_a_failure() -> None:
    async with FakeEngine(good_once(b"H")) as engine, edge(FakeGate(engine.endpoint())) as it:
        await ask(it)
        head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert len(engine.requests) == 2


async def test_a_request_that_may_not_run_twice_is_not_sent_twice() -> None:
    async with FakeEngine(good_once()) as engine, edge(FakeGate(engine.endpoint())) as it:
        await ask(it)
        head, _ = await ask(it, b"{}", "/v1/files")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert len(engine.requests) == 2


async def test_an_engine_that_worked_before_it_died_is_not_asked_again() -> None:
    asked: list[int] = []

    async def script(line: Line, _: Received) -> None:
        asked.append(line.number)
        if len(asked) == 2:
            await asyncio.sleep(0.1)
            line.reset()
        else:
            await line.send(GOOD)

    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, upstream=UpstreamLimits(race=0.02)) as it:
            await ask(it)
            head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 502 ")
    assert len(asked) == 2


# hostile instances

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CL = b"content-length: 2\r\n"
TE = b"transfer-encoding: chunked\r\n"
CHUNKS = b"\r\n2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(HEAD + CL + TE + CHUNKS, id="CL and TE"),
        pytest.param(HEAD + TE + CL + CHUNKS, id="TE and CL"),
        pytest.param(HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", id="CL twice"),
        pytest.param(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ", id="two CLs"),
        pytest.param(HEAD + b"content-length: 2, 2\r\n\r\n{}", id="CL list"),
        pytest.param(HEAD + b"content-length: -2\r\n\r\n{}", id="negative CL"),
        pytest.param(HEAD + b"content-length: +2\r\n\r\n{}", id="signed CL"),
        pytest.param(HEAD + b"transfer-encoding: gzip, chunked\r\n" + CHUNKS, id="gzip, chunked"),
        pytest.param(HEAD + b"transfer-encoding: identity\r\n\r\n{}", id="identity"),
        pytest.param(HEAD + TE + TE + CHUNKS, id="TE twice"),
        pytest.param(b"HTTP/1.0 200 OK\r\n" + TE + CHUNKS, id="chunks in 1.0"),
        pytest.param(b"HTTP/1.1 101 Ok\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{}", id="101"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n{}", id="bare 101"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + answer(b"{}"), id="1xx flood"),
        pytest.param(b"HTTP/1.1 042 What\r\n\r\n{}", id="status 042"),
        pytest.param(b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", id="HTTP/2.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 201 + CL + b"\r\n{}", id="many fields"),
        pytest.param(b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n" + CL + b"\r\n{}", id="large field"),
        pytest.param(b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000, id="large field without end"),
        pytest.param(HEAD + b"a\0b: c\r\ncontent-length: 2\r\n\r\n{}", id="NUL in a name"),
        pytest.param(HEAD + b"a : c\r\ncontent-length: 2\r\n\r\n{}", id="space before the colon"),
        pytest.param(b"{}", id="no head"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS"),
    ],
)  # fmt: skip
async def test_an_answer_that_could_be_read_in_two_ways_is_refused(sent: bytes) -> None:
    async with FakeEngine(hangs_after(sent)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            head, rest = await asyncio.wait_for(ask(it), 5)
            assert engine.open_connections == 0
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b'"code":"instance_garbled"' in rest
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(GOOD + b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", id="a second answer"),
        pytest.param(GOOD + b"x", id="a byte"),
        pytest.param(GOOD + b"\r\n", id="a line end"),
        pytest.param(
            STREAM_HEAD + chunk(b"data: {}\n\n") + LAST_CHUNK + b"\r\n", id="a line end after chunks"
        ),
        pytest.param(STREAM_HEAD + chunk(b"data: {}\n\n") + b"0\r\nsecret: 1\r\n\r\n", id="trailers"),
        pytest.param(GOOD.replace(b"content-type", b"connection: close\r\ncontent-type"), id="close"),
    ],
)
async def test_a_connection_with_more_than_its_answer_serves_nobody_else(sent: bytes) -> None:
    async with FakeEngine(says(sent)) as engine:
        async with edge(FakeGate(engine.endpoint())) as it:
            for _ in range(2):
                head, rest = await ask(it)
                assert head.startswith(b"HTTP/1.1 200 ")
                assert b"bad" not in rest
                assert b"secret" not in rest
        assert engine.connections == 2


@pytest.mark.parametrize("start", [b"0\r\na: ", b"0\r\na", b"2;a="], ids=["trailer", "name", "extension"])
async def test_an_instance_whose_framing_does_not_end_is_parted_with(start: bytes) -> None:
    async def script(line: Line, _: Received) -> None:
        await line.send(STREAM_HEAD + chunk(event("a")) + start)
        while True:
            await line.send(b"b" * 10_000)

    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            _, rest = await asyncio.wait_for(ask(it, ASK_STREAM), 30)
            await it.settled()
            while engine.open_connections:  # noqa: ASYNC110 - the engine's side closes in its own time
                await asyncio.sleep(0.002)
    assert unchunked(rest).endswith(DONE)
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


async def test_framing_in_reads_of_its_own_is_no_flood() -> None:
    """Some servers write a chunk in three pieces; a long stream has more of that than a head may have."""
    events = [event("a" * 10)] * 3000

    async def script(line: Line, _: Received) -> None:
        await line.send(STREAM_HEAD)
        for one in events:
            await line.send(b"%x;%b\r\n" % (len(one), b"x" * 30))
            await asyncio.sleep(0)
            await line.send(one + b"\r\n")
        await line.send(LAST_CHUNK)

    async with FakeEngine(script) as engine, edge(FakeGate(engine.endpoint())) as it:
        _, rest = await asyncio.wait_for(ask(it, ASK_STREAM), 60)
    assert unchunked(rest) == b"".join(events)


async def test_a_byte_on_a_kept_connection_closes_it() -> None:
    lines: list[Line] = []

    async def script(line: Line, _: Received) -> None:
        lines.append(line)
        await line.send(GOOD)

    async with FakeEngine(script) as engine:
        async with edge(FakeGate(engine.endpoint())) as it:
            await ask(it)
            await lines[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad")
            while engine.open_connections:  # noqa: ASYNC110 - the engine's side closes in its own time
                await asyncio.sleep(0.002)
            _, rest = await ask(it)
            assert rest == GOOD.partition(b"\r\n\r\n")[2]
        assert engine.connections == 2


async def test_interim_answers_are_skipped() -> None:
    sent = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + GOOD
    async with FakeEngine(says(sent)) as engine, edge(FakeGate(engine.endpoint())) as it:
        head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"link" not in head


async def test_hop_by_hop_answer_headers_are_dropped() -> None:
    fields = b"connection: x-secret\r\nx-secret: 1\r\nkeep-alive: 5\r\nproxy-authenticate: x\r\nx-kept: 1\r\n"
    async with (
        FakeEngine(says(answer(b"{}", headers=fields))) as engine,
        edge(FakeGate(engine.endpoint())) as it,
    ):
        head, _ = await ask(it)
    assert b"x-kept: 1" in head
    assert b"secret" not in head
    assert b"keep-alive" not in head
    assert b"proxy-authenticate" not in head


async def test_an_instance_cannot_speak_for_the_gateway() -> None:
    spoken = b"x-joulegate-instance: other\r\nX-Joulegate-Pool: other\r\nx-request-id: other\r\n"
    async with (
        FakeEngine(says(answer(b"{}", headers=spoken))) as engine,
        edge(FakeGate(engine.endpoint())) as it,
    ):
        got = await it.raw(post(ASK))
    assert b": other" not in got
    assert got.count(b"x-joulegate-instance: one\r\n") == 1


async def test_an_event_stream_is_one_however_its_type_is_written() -> None:
    head = STREAM_HEAD.replace(b"text/event-stream", b"Text/Event-Stream")
    sent = head + b"".join(map(chunk, [ROLE, event("a"), event("b"), DONE])) + LAST_CHUNK
    async with FakeEngine(says(sent)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            await it.raw(post(ASK_STREAM))
            await it.settled()
    assert gate.reports[0].events == 2


@pytest.mark.parametrize("status", [b"301 X", b"302 X", b"307 X", b"308 X"])
async def test_no_instance_sends_clients_elsewhere(status: bytes) -> None:
    """They would take their keys and prompts with them."""
    sent = answer(b"{}", status, b"location: http://elsewhere/\r\nx-a: b\r\n")
    async with FakeEngine(says(sent)) as engine, edge(FakeGate(engine.endpoint())) as it:
        got = await it.raw(post(ASK))
    assert got.startswith(b"HTTP/1.1 %b" % status[:3])
    assert b"location" not in got.lower()
    assert b"x-a: b\r\n" in got


async def test_an_answer_that_ends_with_the_connection_is_whole() -> None:
    async with FakeEngine(
        closes_after(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"a":1}')
    ) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            _, rest = await ask(it)
    assert unchunked(rest) == b'{"a":1}'
    assert gate.reports[0].ending is Ending.OK


async def test_a_name_is_resolved_anew_for_a_new_connection() -> None:
    async with FakeEngine(says(GOOD)) as engine:
        endpoint = Endpoint("named", "pool", Engine.VLLM, "localhost", engine.port)
        async with edge(FakeGate(endpoint), upstream=UpstreamLimits(keep_alive=0.0)) as it:
            await ask(it)
            head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert engine.connections == 2
    assert engine.requests[0].headers[b"host"] == b"localhost:%d" % engine.port


async def test_a_connection_whose_answer_nobody_took_serves_nobody_else() -> None:
    """A client that left between the arrival of its answer and its passing on leaves no bytes behind."""
    async with FakeEngine(says(GOOD)) as engine:
        pool = UpstreamPool(UpstreamLimits())
        message = [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"]
        told: list[tuple[Seconds, Recall]] = []
        for _ in range(2):
            async with pool.exchange(
                engine.endpoint(),
                message,
                head_only=False,
                with_body=True,
                repeatable=True,
                sent=lambda at, recall: told.append((at, recall)),
            ) as reply:
                assert reply.begun
        assert pool.open_connections == 0
        assert engine.connections == len(told) == 2
        await pool.aclose()


async def test_a_connection_is_not_given_up_because_the_loop_stood_still() -> None:
    """The connection came about while nobody looked: its time was up only by the clock on the wall."""
    async with FakeEngine(says(GOOD)) as engine:
        loop = asyncio.get_running_loop()
        limits = UpstreamLimits()
        opening = loop.create_task(
            loop.create_connection(lambda: Connection(loop, limits), "127.0.0.1", engine.port)
        )
        loop.call_later(0.001, time.sleep, 0.2)
        connection = await opened(opening, 0.1)
        connection.close()


async def test_an_answer_that_came_while_the_loop_stood_still_is_in_time() -> None:
    async def script(line: Line, _: Received) -> None:
        await line.send(STREAM_HEAD + chunk(ROLE))
        asyncio.get_running_loop().call_later(0.05, time.sleep, 1.0)
        await asyncio.sleep(0.1)
        await line.send(chunk(event("a")) + chunk(DONE) + LAST_CHUNK)

    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, upstream=UpstreamLimits(silence=0.5)) as it:
            _, rest = await ask(it, ASK_STREAM)
    assert unchunked(rest) == ROLE + event("a") + DONE
    assert gate.reports[0].ending is Ending.OK


async def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    loop = asyncio.get_running_loop()
    never = asyncio.Event()

    async def silent() -> tuple[object, Connection]:
        await never.wait()
        raise AssertionError

    opening = loop.create_task(silent())
    with pytest.raises(TimeoutError):
        await opened(opening, 0.05)
    await asyncio.wait([opening])
    assert opening.cancelled()


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
@pytest.mark.parametrize("body", [ASK, ASK_STREAM])
async def test_a_key_of_ours_that_an_instance_refuses_is_not_the_clients_fault(
    status: bytes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEngine(says(answer(b'{"error":"Unauthorized"}', status))) as engine:
        gate = FakeGate(replace(engine.endpoint("first"), authorization=b"Bearer old"))
        async with edge(gate) as it:
            for _ in range(2):
                head, rest = await ask(it, body)
                assert head.startswith(b"HTTP/1.1 502 ")
                assert b'"code":"instance_key_refused"' in rest
                assert b"first answered %b to" % status[:3] in rest
                assert b"api_key" in rest
    assert [report.ending for report in gate.reports] == [Ending.KEY_REFUSED] * 2
    told = [record for record in caplog.records if record.message == "instance refuses our key"]
    assert len(told) == 1
    assert "old" not in str(vars(told[0]))


async def test_where_a_key_of_ours_is_refused_another_instance_is_asked() -> None:
    refuses = says(answer(b'{"error":"Unauthorized"}', b"401 Unauthorized"))
    async with FakeEngine(refuses) as bad, FakeEngine(says(GOOD)) as good:
        first = replace(bad.endpoint("bad"), authorization=b"Bearer old")
        gate = FakeGate(first, good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-joulegate-instance: good" in head


async def test_a_key_of_the_clients_own_that_an_instance_refuses_is_the_clients() -> None:
    async with FakeEngine(says(answer(b'{"error":"Unauthorized"}', b"401 Unauthorized"))) as engine:
        gate = FakeGate(engine.endpoint(), retries=1)
        async with edge(gate) as it:
            head, rest = await ask(it)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b'"type":"authentication_error"' in rest
    assert gate.reports[0].ending is Ending.CLIENT_ERROR


UNKNOWN = (
    b'{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}'
)
GONE = says(answer(UNKNOWN, b"404 Not Found"))


@pytest.mark.parametrize("body", [ASK, ASK_STREAM])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_an_instance_that_lost_its_model_is_not_the_clients_fault(body: bytes, path: str) -> None:
    async with FakeEngine(GONE) as engine:
        gate = FakeGate(replace(engine.endpoint("first"), model="m"))
        async with edge(gate) as it:
            head, rest = await ask(it, body, path)
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in head
    assert b'"code":"instance_without_model"' in rest
    assert [report.ending for report in gate.reports] == [Ending.NO_MODEL]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_where_an_instance_lost_its_model_another_is_asked(path: str) -> None:
    async with FakeEngine(GONE) as bad, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(replace(bad.endpoint("bad"), model="m"), good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            head, _ = await ask(it, path=path)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-joulegate-instance: good" in head


async def test_an_adapter_that_no_instance_has_is_unknown_as_they_say_it() -> None:
    async with FakeEngine(GONE) as one, FakeEngine(GONE) as two:
        ends = [replace(each.endpoint(), model="base", adapters=frozenset({"m"})) for each in (one, two)]
        gate = FakeGate(*ends, retries=1)
        async with edge(gate) as it:
            head, rest = await ask(it)
        assert (len(one.requests), len(two.requests)) == (1, 1)
    assert head.startswith(b"HTTP/1.1 404 ")
    assert rest == UNKNOWN
