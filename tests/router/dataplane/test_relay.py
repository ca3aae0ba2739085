"""Requests through guard, relay and upstream pool to a byte-exact engine."""

from router.ports import Ending
from tests.fakes.edge import edge, post, unchunked
from tests.fakes.engine import (
    DONE,
    LAST_CHUNK,
    ROLE,
    STREAM_HEAD,
    USAGE,
    FakeEngine,
    answer,
    chunk,
    event,
    says,
)
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ASK_STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'


async def test_a_json_answer_reaches_the_client_as_it_is() -> None:
    body = b'{"id":"x", "usage":{"prompt_tokens":1,"completion_tokens":2}}'
    async with FakeEngine(says(answer(body))) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            got = await it.raw(post(ASK))
            head, _, rest = got.partition(b"\r\n\r\n")
            assert rest == body
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-joulegate-instance: one" in head
            assert engine.requests[0].body == ASK
            await it.settled()
        assert gate.reports[0].ending is Ending.OK
        assert (gate.reports[0].prompt_tokens, gate.reports[0].completion_tokens) == (1, 2)


async def test_a_stream_is_relayed_without_the_usage_the_gateway_asked_for() -> None:
    sent = STREAM_HEAD + b"".join(map(chunk, [ROLE, event("a"), event("b"), USAGE, DONE])) + LAST_CHUNK
    async with FakeEngine(says(sent)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            got = await it.raw(post(ASK_STREAM))
            _, _, rest = got.partition(b"\r\n\r\n")
            assert unchunked(rest) == ROLE + event("a") + event("b") + DONE
            assert engine.requests[0].body == b'{"stream_options":{"include_usage":true},' + ASK_STREAM[1:]
            await it.settled()
        report = gate.reports[0]
        assert (report.ending, report.events, report.completion_tokens) == (Ending.OK, 2, 2)
