"""What routing reads in a body, and the one edit made to it."""

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.json_bytes import renamed, value_spans
from router.openai_api import (
    asks_usage,
    fingerprint,
    may_inject,
    model_list,
    parse,
    with_usage,
)
from router.ports import ModelCard

CHAT = "/v1/chat/completions"
JSON = b"application/json"

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["model", "messages", "stream_options", "stream", "x", 'a"b', "{", "}", "\\"])
options = st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": values})


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    body = draw(st.dictionaries(keys, values, max_size=5))
    body.pop("stream_options", None)
    body["stream"] = True
    if draw(st.booleans()):
        body["stream_options"] = draw(options)
    order = draw(st.permutations(list(body)))
    return {key: body[key] for key in order}


@given(bodies(), st.sampled_from([None, 1]), st.booleans())
def test_asking_for_usage_changes_that_and_nothing_else(
    body: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    sent = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parsed = parse(CHAT, sent, JSON, "")
    if not may_inject(parsed):
        assert asks_usage(parsed) or not parsed.stream
        return
    pieces = with_usage(bytearray(sent), parsed)
    assert pieces is not None
    edited = json.loads(b"".join(pieces))
    assert edited.pop("stream_options") == {**(body.get("stream_options") or {}), "include_usage": True}
    body.pop("stream_options", None)
    assert edited == body


@pytest.mark.parametrize(
    ("options", "asking"),
    [
        (b"null", b'{"include_usage":true}'),
        (b"{ }", b'{"include_usage":true }'),
        (b'{"x": 1e400}', b'{"include_usage":true,"x": 1e400}'),
        (b'{"x":{"include_usage":0}, "include_usage" : false}', None),
    ],
)
def test_the_other_stream_options_keep_their_bytes(options: bytes, asking: bytes | None) -> None:
    sent = b'{"stream":true,"stream_options":' + options + b"}"
    pieces = with_usage(sent, parse(CHAT, sent, JSON, ""))
    assert pieces is not None
    expected = asking or options.replace(b"false", b"true")
    assert b"".join(pieces) == sent.replace(options, expected)


@pytest.mark.parametrize("options", [b"[1]", b'"x"', b"1"])
def test_stream_options_that_an_engine_refuses_are_left_to_it(options: bytes) -> None:
    sent = b'{"stream":true,"stream_options":' + options + b"}"
    assert with_usage(sent, parse(CHAT, sent, JSON, "")) is None


def test_bytes_that_are_not_understood_stay_as_they_were() -> None:
    sent = b' {"a":1e400, "b":1.0, "a":2,"stream" : true,\n"c":"\\u00e9\\ud800"}'
    pieces = with_usage(sent, parse(CHAT, sent, JSON, ""))
    assert pieces is not None
    assert b"".join(pieces) == b' {"stream_options":{"include_usage":true},' + sent[2:]


@pytest.mark.parametrize(
    "sent",
    [
        b'{"stream":true,"stream_options":{},"stream_options":{}}',
        b'{"stream":true,"stream_options":{},"stream\\u005foptions":{}}',
    ],
)
def test_what_cannot_be_edited_safely_is_not(sent: bytes) -> None:
    parsed = parse(CHAT, sent, JSON, "")
    assert may_inject(parsed)
    assert with_usage(sent, parsed) is None


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (b'{"stream":true}', True),
        (b'{"stream":true,"stream_options":null}', True),
        (b'{"stream":true,"stream_options":{"include_usage":false}}', True),
        (b'{"stream":true,"stream_options":{"include_usage":true}}', False),
        (b'{"stream":true,"stream_options":{"continuous_usage_stats":true}}', False),
        (b'{"stream":false}', False),
        (b'{"stream":"true"}', False),
        (b"{}", False),
        (b"", False),
        (b"[1]", False),
        (b'{"stream":true', False),
    ],
)
def test_usage_is_asked_for_only_where_it_changes_nothing_else(sent: bytes, asked: bool) -> None:
    assert may_inject(parse(CHAT, sent, JSON, "")) is asked


tricky = st.text(st.sampled_from('"\\{}[]:,mn\n \u00e9'), max_size=12)
awkward: st.SearchStrategy[Any] = st.recursive(
    tricky | st.sampled_from(["model", 'x"model', "model\\"]) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky | st.just("model"), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.lists(st.tuples(tricky | st.just("model"), awkward), max_size=6),
    st.sampled_from([(",", ":"), (", ", ": "), (" \n,\t", "\r : ")]),
    st.booleans(),
)
def test_the_values_of_a_key_are_found_at_the_top_level_only(
    members: list[tuple[str, Any]], separators: tuple[str, str], escaped: bool
) -> None:
    """Whatever else is in the body, and however often the key is."""
    comma, colon = separators
    texts = [f"{json.dumps(key)}{colon}{json.dumps(value, separators=separators)}" for key, value in members]
    sent = bytearray(f" {{{comma.join(texts)}}}\n".encode())
    if escaped:
        sent = sent.replace(b'"model"', rb'"m\u006fd\u0065l"')
    assert isinstance(json.loads(sent), dict)
    found = [json.loads(sent[start:end]) for start, end in value_spans(sent, "model")]
    assert found == [value for key, value in members if key == "model"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a line\n" * 100_000, id="many escapes"),
        pytest.param([{"role": "user", "content": 'she said "yes"'}] * 20_000, id="many messages"),
        pytest.param([[[[[[{"model": "x" * 40}]]]]]] * 10_000, id="many depths"),
    ],
)
def test_what_is_looked_for_in_a_large_body_takes_little_memory(value: object) -> None:
    sent = bytearray(json.dumps({"messages": value, "model": "m"}).encode())
    tracemalloc.start()
    spans = value_spans(sent, "model")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [bytes(sent[start:end]) for start, end in spans] == [b'"m"']
    assert peak < 4 * len(sent)


def test_options_too_long_to_be_looked_through_are_left_alone() -> None:
    sent = orjson.dumps({"stream": True, "stream_options": {"x": "}" * 100_000}})
    assert with_usage(sent, parse(CHAT, sent, JSON, "")) is None


def test_a_chat_request_is_read() -> None:
    first = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo"}]
    sent = {
        "model": "m",
        "messages": first,
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "n": 2,
        "tools": [{}],
        "response_format": {"type": "json_schema"},
        "stop": ["x"],
        "stream": True,
    }
    parsed = parse(CHAT, orjson.dumps(sent), JSON, "tenant")
    query = parsed.query
    assert (query.model, query.key, query.max_tokens, query.n) == ("m", "tenant", 7, 2)
    assert (query.has_tools, query.json_mode, query.stop, parsed.stream) == (True, True, True, True)
    assert (query.text_head, query.text_tail, parsed.input_chars) == ("héllo", "héllo", 13)
    assert query.parent == 0
    assert query.system_hash != 0
    assert query.input_tokens == 0


def test_the_next_turn_names_this_one_as_its_parent() -> None:
    first: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
    turns = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    one = parse(CHAT, orjson.dumps({"messages": first}), JSON, "")
    two = parse(CHAT, orjson.dumps({"messages": turns}), JSON, "")
    other = parse(CHAT, orjson.dumps({"messages": [{"role": "user", "content": "z"}, *turns[1:]]}), JSON, "")
    assert one.query.turn != 0
    assert two.query.parent == one.query.turn
    assert other.query.parent != one.query.turn
    assert two.query.turn != one.query.turn


@pytest.mark.parametrize(
    ("route", "sent", "chars", "tokens", "n"),
    [
        ("/v1/completions", {"prompt": "abc"}, 3, 0, 1),
        ("/v1/completions", {"prompt": ["abc", "de"], "n": 2}, 5, 0, 4),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 12, 3, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 12, 3, 2),
        ("/v1/completions", {"prompt": []}, 0, 0, 1),
        ("/v1/completions", {"prompt": 5}, 0, 0, 1),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "abcd"}, {"image_url": "x"}]}]}, 4, 0, 1),
        (CHAT, {"messages": [None, {"role": None, "content": None}, "abc"]}, 3, 0, 1),
        ("/v1/responses", {"instructions": "ab", "input": "cde"}, 5, 0, 1),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"text": "abc"}]}]}, 3, 0, 1),
        ("/v1/messages", {"system": [{"text": "ab"}], "messages": [{"content": "c"}]}, 3, 0, 1),
        ("/generate", {"inputs": "abc", "parameters": {"max_new_tokens": 4}}, 3, 0, 1),
    ],
)  # fmt: skip
def test_the_size_of_the_input(route: str, sent: dict[str, Any], chars: int, tokens: int, n: int) -> None:
    parsed = parse(route, orjson.dumps(sent), JSON, "")
    assert (parsed.input_chars, parsed.query.input_tokens, parsed.query.n) == (chars, tokens, n)


@pytest.mark.parametrize(
    ("sent", "cap"),
    [
        ({"max_output_tokens": 3}, 3),
        ({"parameters": {"max_new_tokens": 4}}, 4),
        ({"max_tokens": 0}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": None, "max_completion_tokens": None}, None),
    ],
)
def test_the_cap_on_the_output(sent: dict[str, Any], cap: int | None) -> None:
    assert parse(CHAT, orjson.dumps(sent), JSON, "").query.max_tokens == cap


@given(st.binary(max_size=200))
def test_any_body_is_read_without_an_error(body: bytes) -> None:
    parse(CHAT, body, JSON, "")
    parse(CHAT, body, b"multipart/form-data; boundary=x", "")


@given(values)
def test_any_json_is_read_without_an_error(value: Any) -> None:
    body = orjson.dumps({"messages": value, "prompt": value, "n": value, "stop": value, "parameters": value})
    parse(CHAT, body, JSON, "")
    parse(CHAT, orjson.dumps({"prompt": value, "text": value, "model": value, "system": value}), JSON, "")


def test_the_model_of_a_form() -> None:
    part = b"--x\r\nContent-Disposition: form-data; name="
    form = part + b'"file"; filename="a"\r\n\r\n\0\1\r\n' + part + b'"model"\r\n\r\nwhisper\r\n--x--\r\n'
    assert (
        parse("/v1/audio/transcriptions", form, b"multipart/form-data; boundary=x", "").query.model
        == "whisper"
    )
    assert parse("/v1/audio/transcriptions", b"", b"multipart/form-data; boundary=x", "").query.model == ""


@pytest.mark.parametrize(
    ("sent", "model"),
    [
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"model":"a","\\u006dodel":"b"}', "b"),
        (b'{"model":"a","Model":"b"}', ""),
        (b'{"MODEL":"b"}', ""),
        (b'{"model":["a"]}', ""),
    ],
)
def test_the_model_is_the_one_that_engines_read_or_none(sent: bytes, model: str) -> None:
    """Those written in Go do not mind case; the last one counts everywhere."""
    assert parse(CHAT, sent, JSON, "").query.model == model


TOOL = (
    b'{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":'
    b'{"model":{"type":"string"},"stream":{"type":"boolean"}},"required":["model"]}}},'
)
TOOLS = b'"tools":[' + TOOL * 600 + b"{}]"  # would take more than ten times its size


@pytest.mark.parametrize(
    ("sent", "model", "stream"),
    [
        pytest.param(b'{"model":"m",' + TOOLS + b',"stream" : true}', "m", True, id="tools"),
        pytest.param(b"{" + TOOLS + b',"model":"a","model":"m"}', "m", False, id="the last counts"),
        pytest.param(b'{"model":"a",' + TOOLS + b',"\\u006d\\u006Fdel":"m"}', "m", False, id="escapes"),
        pytest.param(b'{"model":"a",' + TOOLS + b',"M\\u004fdel":"m"}', "", False, id="of either case"),
        pytest.param(b'{"Stream":true,' + TOOLS + b',"model":5}', "", False, id="no name"),
        pytest.param(b'{"model":"m","a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "m", False, id="deep"),
        pytest.param(b'\xef\xbb\xbf{"model":"m"}', "m", False, id="byte order mark"),
        pytest.param(b'{"a":' + b"9" * 5000 + b',"model":"m"}', "m", False, id="giant number"),
        pytest.param('{"model":"m"}'.encode("utf-16"), "", False, id="UTF-16"),
        pytest.param(b'{"a":' + b"[" * 100_000, "", False, id="no end"),
        pytest.param(b'["model","m"]', "", False, id="no object"),
        pytest.param(b'{"model":}', "", False, id="no value"),
        pytest.param(b'{"model":"m","model":"\\ud800",' + TOOLS + b"}", "", False, id="half a pair"),
        pytest.param(b'{"model":"m",' + TOOLS + b',"x":' + TOOLS[8:] + b"}", "", False, id="too many keys"),
        pytest.param(b'{"x":"' + b"y" * 8 * 2**20 + b'","model":"m",}', "", False, id="too large for that"),
    ],
)
def test_a_body_that_is_not_parsed_is_skimmed(sent: bytes, model: str, stream: bool) -> None:
    found = parse(CHAT, sent, JSON, "")
    assert (found.query.model, found.stream, found.input_chars) == (model, stream, len(sent))


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"x": 1}])
def test_usage_is_asked_for_in_a_body_that_is_skimmed_too(options: dict[str, Any] | None) -> None:
    given = b"" if options is None else b'"stream_options":' + orjson.dumps(options) + b","
    sent = b'{"model":"m",' + given + TOOLS + b',"stream":true}'
    parsed = parse(CHAT, sent, JSON, "")
    assert may_inject(parsed) is (options != {"include_usage": True})
    pieces = with_usage(sent, parsed)
    assert pieces is not None
    asking = orjson.loads(b"".join(pieces))
    assert asking["stream_options"] == {**(options or {}), "include_usage": True}
    assert {**asking, "stream_options": options} == {**orjson.loads(sent), "stream_options": options}


@given(st.binary(max_size=300) | st.text('{}[]":,\\u006dmodelSTREAM_1 ', max_size=80).map(str.encode))
def test_whatever_is_skimmed_is_no_error(body: bytes) -> None:
    parse(CHAT, b'{"x":01,"model":' + body, JSON, "")
    renamed(bytearray(b'{"x":01,"model":' + body), "m")


def test_a_fingerprint_tells_bodies_apart() -> None:
    large = b"x" * 300_000
    bodies_ = [b"", b"a", b"b", large, large[:-1] + b"y", b"y" + large[1:], large + b"x"]
    assert len({fingerprint(body) for body in bodies_}) == len(bodies_)
    assert fingerprint(large) == fingerprint(bytearray(large))


def test_models_are_rendered_as_openai_does() -> None:
    listed = orjson.loads(model_list([ModelCard("a", max_model_len=5, extra={"root": "r"}), ModelCard("b")]))
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "a",
        "object": "model",
        "created": 0,
        "owned_by": "joulegate",
        "max_model_len": 5,
        "root": "r",
    }


def test_a_large_body_that_would_swell_is_not_parsed() -> None:
    def read(prompt: bytes) -> bool:
        found = parse(CHAT, b'{"model":"m","n":2,"prompt":[' + prompt + b"1]}", JSON, "").query
        assert found.model == "m"
        return found.n > 1

    assert not read(b"{}," * 500_000)
    assert not read(b"[]," * 500_000)
    assert read(b"12345," * 300_000)
    assert read(b'"' + b"{[," * 500_000 + b'",')
    assert read(b'"' + b"some words, and more. " * 100_000 + b'",')


@pytest.mark.parametrize("more", ["", ',"x":NaN'])  # the latter is read by the slow parser
@pytest.mark.parametrize("digits", [19, 25, 400])
def test_numbers_that_no_engine_takes_are_not_counted_with(digits: int, more: str) -> None:
    body = f'{{"model":"m","n":{"9" * digits},"max_tokens":{"9" * digits}{more}}}'.encode()
    found = parse("/v1/chat/completions", body, b"application/json", "")
    assert (found.query.model, found.query.n, found.query.max_tokens) == ("m", 1, None)
