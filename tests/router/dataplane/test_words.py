"""Heads, errors, verdicts: the small pure parts."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegate.units import Seconds
from router.errors import (
    BadRequest,
    NoSuchModel,
    NoSuchRoute,
    PoolDown,
    Shed,
    UpstreamDown,
    UpstreamSilent,
    translate,
)
from router.head import RequestHead, check_path, forwarded, relayed, request_head
from router.intake import message, objective, safe_id, understand
from router.keys import KeyEntry, Keys, digest
from router.ports import Caller, Ending, Endpoint, Engine
from router.verdict import ending_of, ending_of_failure, try_another


@pytest.mark.parametrize(
    ("status", "body", "message_", "kind", "code"),
    [
        (422, b'{"error":"too long","error_type":"validation"}', "too long", "validation", 422),
        (401, b'{"error":"Unauthorized"}', "Unauthorized", "authentication_error", 401),
        (404, b'{"detail":"Not Found"}', "Not Found", "invalid_request_error", 404),
        (422, b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]', "invalid_request_error", 422),
        (400, b'{"error":{"message":"m","http_status_code":422}}', "m", "invalid_request_error", 422),
        (500, b"Internal Server Error", "Internal Server Error", "server_error", 500),
        (400, b"", "the engine answered 400 with no body", "invalid_request_error", 400),
        (400, b"[1]", "[1]", "invalid_request_error", 400),
        (400, b'{"object":"error","message":"m","type":"T","param":null,"code":1}', "m", "T", 1),
    ],
)
def test_engines_errors_become_openais(status: int, body: bytes, message_: str, kind: str, code: int) -> None:
    translated = translate(status, body)
    assert translated is not None
    error = orjson.loads(translated)["error"]
    assert (error["message"], error["type"], error["code"]) == (message_, kind, code)


def test_an_openai_error_stays_as_it_is() -> None:
    assert translate(400, b'{"error":{"message":"m","type":"Bad Request","param":null,"code":400}}') is None


@given(st.integers(400, 599), st.binary(max_size=60))
def test_any_error_body_becomes_openais_and_stays_so(status: int, body: bytes) -> None:
    translated = translate(status, body)
    if translated is not None:
        assert translate(status, translated) is None


@given(st.text() | st.text(st.characters(categories=["Cs"])))
def test_whatever_a_message_names_is_told_as_json(message: str) -> None:
    found = orjson.loads(NoSuchModel(message).body())["error"]
    assert len(found["message"]) == len(message)
    assert found["code"] == "model_not_found"


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    assert PoolDown("x", retry_after=0.2).headers() == [(b"retry-after", b"1")]
    assert PoolDown("x", retry_after=2.1).headers() == [(b"retry-after", b"3")]
    assert Shed("x", as_status=429).answer_status == 429


@pytest.mark.parametrize(
    ("status", "body", "ending"),
    [
        (200, b"", Ending.OK),
        (400, b"", Ending.CLIENT_ERROR),
        (404, b"", Ending.CLIENT_ERROR),
        (404, b"[1]", Ending.CLIENT_ERROR),
        (404, b'{"error":[]}', Ending.CLIENT_ERROR),
        (404, b'{"detail":"Not Found"}', Ending.CLIENT_ERROR),
        (404, b'{"error":{"message":"Response with id r not found.","param":null}}', Ending.CLIENT_ERROR),
        (404, b'{"error":{"message":"The model `m` does not exist.","param":"model"}}', Ending.NO_MODEL),
        (404, b'{"object":"error","message":"The model `m` does not exist."}', Ending.NO_MODEL),
        (404, b'{"error":{"message":"model \'m\' not found, try pulling it first"}}', Ending.NO_MODEL),
        (404, b'{"error":{"message":"what?","code":"model_not_found"}}', Ending.NO_MODEL),
        (408, b"", Ending.UPSTREAM_BUSY),
        (424, b"", Ending.UPSTREAM_ERROR),
        (429, b"", Ending.UPSTREAM_BUSY),
        (500, b"", Ending.UPSTREAM_ERROR),
        (
            500,
            b'{"error":{"message":"EngineCore encountered an issue. See", "code":500}}',
            Ending.UPSTREAM_DOWN,
        ),
        (503, b'{"error":"unhealthy"}', Ending.UPSTREAM_ERROR),
        (503, b"Please try again later or on a different instance", Ending.UPSTREAM_BUSY),
    ],
)
def test_what_a_status_says_of_the_instance(status: int, body: bytes, ending: Ending) -> None:
    assert ending_of(status, body) is ending


def test_another_instance_is_tried_for_the_instances_faults_only() -> None:
    silent, down, unsent = UpstreamSilent("x"), UpstreamDown("x"), UpstreamDown("x", unsent=True)
    assert ending_of_failure(silent) is Ending.TIMEOUT
    assert not try_another(Ending.TIMEOUT, silent, True)
    assert not try_another(Ending.CLIENT_ERROR, None, True)
    assert not try_another(Ending.OK, None, True)
    assert try_another(Ending.UPSTREAM_DOWN, down, True)
    assert not try_another(Ending.UPSTREAM_DOWN, down, False)
    assert try_another(Ending.UPSTREAM_DOWN, unsent, False)
    assert try_another(Ending.UPSTREAM_BUSY, None, False)


def test_headers_of_this_hop_and_of_the_gateway_are_not_forwarded() -> None:
    sent = [
        (b"host", b"x"),
        (b"connection", b"close, X-Secret"),
        (b"x-secret", b"1"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer k"),
        (b"x-api-key", b"k"),
        (b"x-joulegate-true-output-tokens", b"5"),
        (b"x-slo-ttft-ms", b"5"),
        (b"proxy-authorization", b"k"),
        (b"traceparent", b"00-1-2-03"),
        (b"cookie", b"a=b"),
    ]
    assert forwarded(sent) == [(b"traceparent", b"00-1-2-03"), (b"cookie", b"a=b")]


def test_a_head_is_written_as_http_wants_it() -> None:
    head = request_head("POST", "/v1/x", b"a=b", b"host: h:1\r\n", b"accept: */*\r\n", 5)
    assert head == b"POST /v1/x?a=b HTTP/1.1\r\nhost: h:1\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"


@given(st.text(max_size=40))
def test_a_path_that_passes_has_one_reading(path: str) -> None:
    for one in (path, "/v1/" + path):
        try:
            passed = check_path(one.encode("utf-8"))
        except NoSuchRoute:
            continue
        assert passed == one
        assert relayed(passed)
        assert not set(passed) & set("%;\\?# ")
        assert "//" not in passed
        assert not {".", ".."} & set(passed.split("/"))


def test_routes_that_pass() -> None:
    for path in (
        "/v1/chat/completions",
        "/v1/responses/resp_1/cancel",
        "/v1/files/file-a.b/content",
        "/tokenize",
    ):
        assert check_path(path.encode()) == path
    for path in ("/sleep", "/v1/load_lora_adapter", "/v1/UNLOAD_lora_adapter/", "/v1", "/v2/embed"):
        with pytest.raises(NoSuchRoute):
            check_path(path.encode())


def test_only_safe_request_ids_are_taken_over() -> None:
    assert safe_id(b"gw-1") == "gw-1"
    assert safe_id(None) is None
    for bad in (b"", b"a b", b"a\tb", b"x" * 200, b"-a", "é".encode()):
        assert safe_id(bad) is None


def test_objectives_are_clamped_and_checked() -> None:
    assert objective({}, b"x-slo-ttft-ms", Seconds(0.0)) is None
    assert objective({b"x-slo-ttft-ms": b"250"}, b"x-slo-ttft-ms", Seconds(0.0)) == 0.25
    assert objective({b"x-slo-ttft-ms": b"250"}, b"x-slo-ttft-ms", Seconds(1.0)) == 1.0
    for bad in (b"", b"x", b"0", b"-1", b"nan", b"inf", b"1e999"):
        with pytest.raises(BadRequest):
            objective({b"x-slo-ttft-ms": bad}, b"x-slo-ttft-ms", Seconds(0.0))


def sent(
    endpoint: Endpoint,
    headers: list[tuple[bytes, bytes]],
    id_: str = "gw-1",
    text: bytes = b'{"stream":true}',
) -> bytes:
    body = bytearray(text)
    call = understand(
        "POST",
        "/v1/chat/completions",
        b"",
        RequestHead("POST", "1.1", headers, dict(headers)),
        body,
        Caller(),
        id_,
        Seconds(0.0),
    )
    return b"".join(message(call, endpoint).pieces)


def test_what_an_engine_is_told() -> None:
    headers = [(b"accept-encoding", b"gzip"), (b"x-joulegate-true-output-tokens", b"9")]
    vllm = sent(Endpoint("e", "p", Engine.VLLM, "::1", 80, authorization=b"Bearer upstream"), headers)
    assert b"\r\nhost: [::1]:80\r\n" in vllm
    assert b"authorization: Bearer upstream" in vllm
    assert b"x-request-id: gw-1" in vllm
    assert b"accept-encoding" not in vllm  # a stream it must take the usage event out of
    assert b"true-output" not in vllm
    other = sent(Endpoint("e", "p", Engine.OPENAI, "h", 80), headers)
    assert b"x-request-id" not in other  # llama-cpp-python refuses what is no UUID
    assert b"accept-encoding: gzip" in other
    assert other.endswith(b'\r\n\r\n{"stream":true}')
    uuid = "0123456789abcdef0123456789abcdef"
    assert b"x-request-id: " + uuid.encode() in sent(
        Endpoint("e", "p", Engine.OPENAI, "h", 80), headers, uuid
    )
    emulated = Endpoint("e", "p", Engine.VLLM, "h", 80, emulated=True)
    assert b"x-joulegate-true-output-tokens: 9" in sent(emulated, headers)


def test_an_open_gateway_knows_it_and_has_no_admin() -> None:
    assert Keys().is_open
    assert Keys().caller({}) == Caller()
    assert not Keys().is_admin([(b"authorization", b"Bearer x")])
    keys = Keys([KeyEntry(digest("k"), Caller("t"))], admin=digest("root"))
    assert not keys.is_open
    assert keys.is_admin([(b"authorization", b"Bearer root")])
    assert not keys.is_admin([(b"authorization", b"Bearer k")])
    assert not keys.is_admin([])
    assert keys.caller({b"authorization": b"Bearer k"}).name == "t"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        pytest.param(b'{"model":"short","n":1}', b'{"model":"org/long","n":1}', id="an alias"),
        pytest.param(
            b'{"n":1, "model" :\t"short" }', b'{"n":1, "model" :\t"org/long" }', id="nothing else moves"
        ),
        pytest.param(b'{"model":"org/long"}', b'{"model":"org/long"}', id="its own name"),
        pytest.param(b'{"model":"lora-1"}', b'{"model":"lora-1"}', id="an adapter"),
        pytest.param(b'{"n":1}', b'{"n":1}', id="no name"),
        pytest.param(
            b'{"model":"x","model":"short"}', b'{"model":"org/long","model":"org/long"}', id="named twice"
        ),
        pytest.param(
            b'{"model":"x","\\u006d\\u006Fdel":"short"}',
            b'{"model":"org/long","\\u006d\\u006Fdel":"org/long"}',
            id="named with escapes",
        ),
        pytest.param(
            b'{"model":{"model":1},"model":"short"}',
            b'{"model":{"model":1},"model":"org/long"}',
            id="no name beside one",
        ),
        pytest.param(
            b'{"messages":[{"model":"short"}],"model":"short"}',
            b'{"messages":[{"model":"short"}],"model":"org/long"}',
            id="only at the top",
        ),
    ],
)
def test_an_engine_is_asked_for_the_name_it_knows(asked: bytes, told: bytes) -> None:
    endpoint = Endpoint(
        "a", "p", Engine.VLLM, "h", 1, model="org/long", adapters=frozenset({"lora-1"}), usage_injection=False
    )
    message = sent(endpoint, [], text=asked)
    assert message.partition(b"\r\n\r\n")[2] == told
    assert b"content-length: %d\r\n" % len(told) in message


def test_a_form_is_left_as_it_is() -> None:
    """Also where it looks like JSON: what is between its parts is not ours to edit."""
    form = (
        b'{"model":"short"}\r\n--B\r\ncontent-disposition: form-data; name="model"\r\n\r\nshort\r\n--B--\r\n'
    )
    endpoint = Endpoint("a", "p", Engine.VLLM, "h", 1, model="org/long")
    message = sent(endpoint, [(b"content-type", b"multipart/form-data; boundary=B")], text=form)
    assert message.endswith(b"\r\n\r\n" + form)
