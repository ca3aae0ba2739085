"""Requests through guard, relay and upstream pool to a byte-exact engine."""

import random
from base64 import b64encode

import pytest

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


NOISE = random.Random(1).randbytes(200_000)
FORM = (
    b'--B\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--B\r\ncontent-disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + NOISE + b"\r\n--B--\r\n"
)
HEARD = [
    b'data: {"type":"transcript.text.delta","delta":"hi"}\n\n',
    b'data: {"type":"transcript.text.done","text":"hi","usage":{"type":"tokens","input_tokens":14}}\n\n',
]
TOOLS = [
    b'data: {"choices":[{"index":%d,"delta":{"tool_calls":[{"function":{"arguments":"%b"}}]}}]}\n\n' % one
    for one in ((0, b'{\\"delta'), (1, b'{\\"error'), (0, b'\\": 1}'), (1, b'\\": \\"usage\\"}'))
]


@pytest.mark.parametrize(
    ("path", "kind", "sent", "parts"),
    [
        pytest.param("audio/transcriptions", b"multipart/form-data; boundary=B", FORM, HEARD, id="heard"),
        pytest.param("audio/speech", b"application/json", b'{"model":"m","input":"x"}', [NOISE], id="spoken"),
        pytest.param(
            "embeddings",
            b"application/json",
            b'{"model":"m","input":"x","encoding_format":"base64"}',
            [b'{"data":[{"embedding":"%b"}]}' % b64encode(NOISE)],
            id="base64",
        ),
        pytest.param(
            "chat/completions", b"application/json", ASK_STREAM[:-1] + b',"n":2}', TOOLS, id="tools of two"
        ),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_answers_of_every_kind_pass_as_they_are(
    path: str, kind: bytes, sent: bytes, parts: list[bytes], version: bytes
) -> None:
    """A client that speaks 1.0 has its end of the answer with the end of the connection."""
    said = STREAM_HEAD + b"".join(map(chunk, parts)) + LAST_CHUNK
    if not parts[0].startswith(b"data:"):
        said = said.replace(b"text/event-stream; charset=utf-8", b"application/octet-stream")
    asking = (
        post(sent, f"/v1/{path}").replace(b"application/json", kind).replace(b"HTTP/1.1", b"HTTP/" + version)
    )
    async with FakeEngine(says(said)) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            head, _, rest = (await it.raw(asking)).partition(b"\r\n\r\n")
            await it.settled()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (rest if version == b"1.0" else unchunked(rest)) == b"".join(parts)
    assert engine.requests[0].body.endswith(sent[1:])
    assert gate.reports[0].ending is Ending.OK
