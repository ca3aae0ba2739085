"""Event streams: where they are cut makes no difference; the usage event is taken out, nothing else."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dialects import (
    CHAT,
    COMPLETIONS,
    DONE,
    MESSAGES,
    OTHER,
    RESPONSES,
    TGI,
    Dialect,
    Tap,
    Usage,
    dialect_of,
    error_event,
    injects_usage,
    usage_of,
)
from router.errors import UpstreamDown
from router.ports import Endpoint, Engine
from router.sse import HOLD_LIMIT, Cutter, events, payload

LINE_ENDS = ["\n", "\r\n", "\r"]


def chat(text: str | None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    return orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, **more}]})


USAGE_ONLY = orjson.dumps(
    {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}},
    }
)

contents = st.one_of(
    st.builds(chat, st.text(max_size=20)),
    st.just(chat(None, finish_reason="stop")),
    st.just(orjson.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})),
    st.just(orjson.dumps({"choices": [], "usage": None})),
    st.sampled_from(['"usage":{"x":1}', 'data: {"error":', "[DONE]", '{"choices":[],"usage":{}}']).map(chat),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chat stream, and the same without its usage event."""
    end = draw(st.sampled_from(LINE_ENDS)).encode()
    space = draw(st.sampled_from([b"", b" "]))
    kept = [b"data:" + space + content + end + end for content in draw(st.lists(contents, max_size=8))]
    if draw(st.booleans()):
        kept.insert(draw(st.integers(0, len(kept))), b": keep-alive" + end + end)
    closing = [b"data:" + space + b"[DONE]" + end + end] if draw(st.booleans()) else []
    usage = [b"data:" + space + USAGE_ONLY + end + end]
    return b"".join(kept + usage + closing), b"".join(kept + closing)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def run(tap: Tap, pieces: list[bytes]) -> bytes:
    return b"".join([*map(tap.feed, pieces), tap.end()])


@given(streams(), st.lists(st.integers(0, 10_000), max_size=30))
def test_a_cut_stream_comes_out_as_a_whole_one(stream: tuple[bytes, bytes], at: list[int]) -> None:
    sent, without_usage = stream
    whole, pieces, watching = Tap(CHAT, True), Tap(CHAT, True), Tap(CHAT, False)
    assert run(whole, [sent]) == without_usage
    assert run(pieces, cut(sent, at)) == without_usage
    assert run(watching, cut(sent, at)) == sent
    assert whole.count == pieces.count == watching.count
    assert whole.usage() == pieces.usage() == watching.usage() == Usage(7, 9, 3)
    assert not pieces.failed


@given(st.binary(max_size=300), st.lists(st.integers(0, 1000), max_size=20))
def test_any_bytes_pass_unchanged_when_nothing_is_to_be_taken_out(data: bytes, at: list[int]) -> None:
    assert run(Tap(TGI, False), cut(data, at)) == data
    assert b"".join(events(data)) == data


lines = st.sampled_from(
    [b"data: " + USAGE_ONLY, b"data: " + chat("a"), b'data: {"error":"x"}', b"event: x", b"x"]
)


@given(
    st.lists(st.tuples(lines, st.text("\r\n", max_size=6).map(str.encode)), min_size=1, max_size=5),
    st.lists(st.integers(0, 10_000), max_size=4),
    st.sampled_from([CHAT, RESPONSES, TGI]),
)
def test_line_ends_too_many_belong_to_no_event(
    stream: list[tuple[bytes, bytes]], at: list[int], dialect: Dialect
) -> None:
    sent = b"".join(map(b"".join, stream))
    whole, pieces = Tap(dialect, True), Tap(dialect, True)
    assert run(pieces, cut(sent, at)) == run(whole, [sent])
    assert (pieces.count, pieces.failed, pieces.usage()) == (whole.count, whole.failed, whole.usage())


@given(streams(), st.lists(st.integers(0, 10_000), max_size=30))
def test_what_a_cutter_lets_through_ends_where_an_event_ends(
    stream: tuple[bytes, bytes], at: list[int]
) -> None:
    cutter, out = Cutter(), b""
    for piece in cut(stream[0], at):
        passed = cutter.feed(piece)
        out += passed
        if passed:
            assert passed.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
    assert out + cutter.rest() == stream[0]


def test_an_endless_event_is_passed_on_in_pieces_and_closed_before_an_error() -> None:
    tap = Tap(CHAT, True)
    piece = b"data: " + b"x" * HOLD_LIMIT
    assert tap.feed(piece) == piece
    assert tap.broken(UpstreamDown("gone")).startswith(b'\n\ndata: {"error":')


def test_an_unfinished_event_is_dropped_when_the_stream_breaks() -> None:
    tap = Tap(CHAT, False)
    assert tap.feed(b"data: {}\n\ndata: {") == b"data: {}\n\n"
    assert tap.broken(UpstreamDown("gone")) == error_event(CHAT, UpstreamDown("gone"))


ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TOOL = b'data: {"choices":[{"delta":{"tool_calls":[{}]}}]}\n\n'
THOUGHT = b'data: {"choices":[{"delta":{"reasoning":"x"}}]}\n\n'
NO_TEXT = b'data: {"choices":[{"text":""}]}\n\n'
TEXT = b'data: {"choices":[{"text":"a"}]}\n\n'
CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
BLOCK = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
START = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
STOP = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":8}}\n\n'
TOKEN = b'data:{"index":1,"token":{"id":1,"text":"a"},"generated_text":null,"details":null}\n\n'
LAST = b'data:{"index":2,"token":{"id":2},"generated_text":"ab","details":{"generated_tokens":2}}\n\n'


@pytest.mark.parametrize(
    ("dialect", "sent", "first", "count"),
    [
        pytest.param(CHAT, [ROLE, b": hi\n\n", b"data: " + chat("a") + b"\n\n", DONE], 2, 1, id="chat"),
        pytest.param(CHAT, [ROLE, TOOL], 1, 1, id="tool"),
        pytest.param(CHAT, [ROLE, THOUGHT], 1, 1, id="reasoning"),
        pytest.param(CHAT, [ROLE, DONE], None, 0, id="no output"),
        pytest.param(COMPLETIONS, [NO_TEXT, TEXT], 1, 1, id="completions"),
        pytest.param(RESPONSES, [CREATED, DELTA, DELTA], 1, 2, id="responses"),
        pytest.param(MESSAGES, [START, BLOCK, BLOCK, STOP], 1, 2, id="messages"),
        pytest.param(TGI, [TOKEN, LAST], 0, 2, id="tgi"),
        pytest.param(OTHER, [DELTA], None, 0, id="other"),
    ],
)  # fmt: skip
def test_the_first_output_is_content_not_the_first_byte(
    dialect: Dialect, sent: list[bytes], first: int | None, count: int
) -> None:
    tap = Tap(dialect, False)
    seen = None
    for number, piece in enumerate(sent):
        assert tap.feed(piece) == piece
        if tap.has_output and seen is None:
            seen = number
    assert (seen, tap.count) == (first, count)
    joined = Tap(dialect, False)
    joined.feed(b"".join(sent))
    assert joined.count == count


def test_usage_is_read_from_each_dialects_own_fields() -> None:
    messages = Tap(MESSAGES, False)
    run(messages, [START, BLOCK, STOP])
    assert messages.usage() == Usage(5, 8, None)
    responses = Tap(RESPONSES, False)
    run(responses, [b'data: {"response":{"usage":{"input_tokens":1,"output_tokens":2,'
                    b'"input_tokens_details":{"cached_tokens":1}}}}\n\n'])  # fmt: skip
    assert responses.usage() == Usage(1, 2, 1)
    assert usage_of(b'{"generated_text":"x","details":{"generated_tokens":4}}') == Usage(None, 4, None)
    assert usage_of(b'{"usage":{"prompt_tokens":true,"completion_tokens":-1}}') == Usage()
    large = b'{"usage": {"prompt_tokens": 999999999, "total_tokens": 1, "completion_tokens": 3}}'
    assert usage_of(large) == Usage(None, 3, None), "nobody counts so far"
    assert usage_of(b"[]") == usage_of(b"") == usage_of(b'{"usage":[]}') == Usage()


def test_continuous_usage_is_not_taken_out() -> None:
    one = (
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    )
    tap = Tap(CHAT, True)
    assert tap.feed(one) == one
    assert tap.usage() == Usage(1, 1, None)


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS])
def test_tgis_error_inside_a_stream_becomes_openais(dialect: Dialect) -> None:
    tap = Tap(dialect, True)
    out = tap.feed(b'data: {"error":{"message":"bad","http_status_code":422}}\n\n' + DONE)
    first, done = out.split(b"\n\n")[:2]
    error = orjson.loads(payload(first))["error"]
    assert error == {"message": "bad", "type": "invalid_request_error", "param": None, "code": 422}
    assert done == DONE.strip()
    assert "bad" in tap.failed


@pytest.mark.parametrize(
    ("dialect", "sent"),
    [
        (CHAT, b'data: {"error": {"message": "m", "type": "InternalServerError", "code": 500}}\n\n'),
        (TGI, b'data:{"error":"Request failed","error_type":"generation"}\n\n'),
        (MESSAGES, b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m"}}\n\n'),
        (RESPONSES, b'event: response.failed\ndata: {"type":"response.failed","response":{}}\n\n'),
        (RESPONSES, b'event: error\ndata: {"type":"error","message":"m"}\n\n'),
        (RESPONSES, b'data: {"type":"error","code":"x","message":"m"}\n\n'),
        (CHAT, b'data: { "error" : {"message":"m","type":"t"}}\n\n'),
        (CHAT, b'data: {"id":"c","choices":[{"delta":{}}],"error":{"code":502,"message":"m"}}\n\n'),
        (OTHER, b'data: {"error":{"message":"m","type":"t"}}\n\n'),
    ],
)  # fmt: skip
def test_an_error_event_is_noticed_and_passes(dialect: Dialect, sent: bytes) -> None:
    tap = Tap(dialect, False)
    assert tap.feed(sent) == sent
    assert tap.failed


@pytest.mark.parametrize(
    "sent",
    [
        b'data: {"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}\n\n',
        b'data: {"error":"bad"}\n\n',
        b'data:{"error":"bad","error_type":"generation"}\n\n',
        b'data: {"id":"x","error":{"message":"bad"}}\n\n',
    ],
)
def test_an_engines_error_inside_a_stream_becomes_openais_whatever_its_shape(sent: bytes) -> None:
    for cut in range(1, len(sent)):
        tap = Tap(CHAT, True)
        out = tap.feed(sent[:cut]) + tap.feed(sent[cut:])
        error = orjson.loads(payload(out))["error"]
        assert error["message"] == "bad"
        assert isinstance(error["type"], str)
        assert "bad" in tap.failed


def test_a_line_end_too_many_makes_no_difference_to_an_error() -> None:
    sent = b'data: {}\n\n\ndata: {"error":"bad"}\n\n'
    outs = set()
    for cut in range(len(sent)):
        tap = Tap(CHAT, True)
        outs.add(tap.feed(sent[:cut]) + tap.feed(sent[cut:]))
    assert len(outs) == 1, outs


def test_a_token_that_reads_error_is_none() -> None:
    tap = Tap(CHAT, True)
    sent = b'data: {"choices":[{"delta":{"content":"error"},"logprobs":{"content":[{"token":"error"}]}}]}\n\n'
    assert tap.feed(sent) == sent
    assert not tap.failed
    assert tap.count == 1


@pytest.mark.parametrize("text", ['{"error": 1}', 'data: {"error":{"message":"x"}}', "event: error\ndata: x"])
def test_an_error_that_the_model_wrote_is_no_error(text: str) -> None:
    for dialect in (CHAT, MESSAGES, RESPONSES):
        tap = Tap(dialect, False)
        sent = b"data: " + chat(text) + b"\n\n"
        assert tap.feed(sent) == sent
        assert not tap.failed


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES, TGI, OTHER])
def test_the_gateways_own_error_is_an_error_to_a_gateway_in_front(dialect: Dialect) -> None:
    tap = Tap(dialect, False)
    tap.feed(error_event(dialect, UpstreamDown('a "quoted"\nreason')))
    assert tap.failed


def test_usage_is_asked_of_engines_that_know_the_option_only() -> None:
    def endpoint(engine: Engine, usage_injection: bool = True) -> Endpoint:
        return Endpoint("e", "p", engine, "h", 1, usage_injection=usage_injection)

    assert injects_usage(CHAT, endpoint(Engine.VLLM))
    assert injects_usage(COMPLETIONS, endpoint(Engine.TGI))
    assert not injects_usage(CHAT, endpoint(Engine.OPENAI))
    assert not injects_usage(CHAT, endpoint(Engine.VLLM, usage_injection=False))
    assert not injects_usage(RESPONSES, endpoint(Engine.VLLM))
    assert dialect_of("/v1/chat/completions/") is CHAT
    assert dialect_of("/v1/embeddings") is OTHER
