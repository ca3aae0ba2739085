import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.simulator.conftest import MODEL, RunningFleet
from tests.simulator.test_emulator_vllm import HELLO, events

JSON = {"content-type": "application/json"}


@pytest.fixture
def http(fleet: RunningFleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.urls["tgi"], timeout=20) as client:
        yield client


def generate(http: httpx.Client, path: str = "/generate", **parameters: Any) -> httpx.Response:
    return http.post(path, json={"inputs": "hello there", "parameters": parameters})


def test_generate_brings_text_details_and_timing(http: httpx.Client) -> None:
    response = generate(http, max_new_tokens=5, details=True)
    body = response.json()
    details = body["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["prefill"]) == ("length", 5, [])
    assert body["generated_text"] == "".join(token["text"] for token in details["tokens"])
    assert response.headers["x-generated-tokens"] == "5"
    assert response.headers["x-prompt-tokens"] == "3"
    assert generate(http, max_new_tokens=5).json() == {"generated_text": body["generated_text"]}


def test_generate_stream_ends_with_the_whole_text_and_no_done(http: httpx.Client) -> None:
    response = generate(http, "/generate_stream", max_new_tokens=4, details=True)
    assert response.headers["content-type"] == "text/event-stream"
    lines = [line for line in response.text.split("\n\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [chunk["index"] for chunk in chunks] == [1, 2, 3, 4]
    assert [chunk["generated_text"] is None for chunk in chunks] == [True, True, True, False]
    assert chunks[-1]["generated_text"] == "".join(chunk["token"]["text"] for chunk in chunks)
    assert chunks[-1]["details"]["input_length"] == 3


@pytest.mark.parametrize(("stream", "kind"), [(False, "application/json"), (True, "text/event-stream")])
def test_the_root_route_switches_on_stream(http: httpx.Client, stream: bool, kind: str) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 2}, "stream": stream}
    assert http.post("/", json=body).headers["content-type"] == kind


def test_a_chat_stream_has_tgis_shape(http: httpx.Client) -> None:
    body = {"model": "tgi", "messages": HELLO, "max_tokens": 3, "stream": True}
    plain = events(http.post("/v1/chat/completions", json=body).text)
    assert [chunk["id"] for chunk in plain] == [""] * 3
    assert plain[0]["model"] == MODEL
    assert plain[-1]["choices"][0]["finish_reason"] == "length"
    counted = events(
        http.post("/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}).text
    )
    assert counted[-1]["choices"] == []
    assert counted[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def test_whole_openai_answers_echo_any_model(http: httpx.Client) -> None:
    body = {"model": "whatever", "max_tokens": 3}
    chat = http.post("/v1/chat/completions", json=body | {"messages": HELLO}).json()
    text = http.post("/v1/completions", json=body | {"prompt": "abc"}).json()
    assert (chat["model"], text["model"]) == ("whatever", "whatever")
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]


def test_the_true_length_comes_by_header(http: httpx.Client) -> None:
    reply = http.post(
        "/v1/chat/completions",
        json={"messages": HELLO},
        headers={"x-joulegate-true-output-tokens": "9"},
    ).json()
    assert reply["usage"]["completion_tokens"] == 9
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_validation_errors(http: httpx.Client) -> None:
    response = generate(http, max_new_tokens=5000)
    assert response.status_code == 422
    assert response.json() == {
        "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. "
        "Given: 3 `inputs` tokens and 5000 `max_new_tokens`",
        "error_type": "validation",
    }
    assert generate(http, max_new_tokens=0).json()["error_type"] == "validation"
    empty = http.post("/v1/chat/completions", json={"messages": []})
    assert (empty.status_code, empty.json()["error_type"]) == (422, "template_error")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [(b"{", JSON, 400), (b"{}", {"content-type": "text/plain"}, 415), (b"{}", JSON, 422)],
)
def test_what_the_web_framework_refuses_is_plain_text(
    http: httpx.Client, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = http.post("/generate", content=content, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/plain")


async def test_overload_is_429_and_inside_a_stream_an_event(fleet: RunningFleet) -> None:
    async with httpx.AsyncClient(base_url=fleet.urls["tgi"], timeout=20) as client:
        long = {"inputs": "hello", "parameters": {"max_new_tokens": 150}}
        running = [asyncio.create_task(client.post("/generate", json=long)) for _ in range(4)]
        while "tgi_batch_current_size 4.0" not in (await client.get("/metrics")).text:
            pass
        refused = await client.post("/generate", json=long)
        streamed = await client.post("/generate_stream", json=long)
        body = {"messages": HELLO, "stream": True}
        chat = await client.post("/v1/chat/completions", json=body)
        assert [reply.status_code for reply in await asyncio.gather(*running)] == [200] * 4
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    assert (refused.status_code, refused.json()) == (429, overloaded)
    assert streamed.status_code == 200
    assert streamed.text == f"data: {json.dumps(overloaded, separators=(',', ':'))}\n\n"
    assert events(chat.text)[0]["error"]["http_status_code"] == 422


def test_the_small_routes(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_concurrent_requests"]) == (MODEL, 4096, 4)
    assert http.get("/health").content == b""
    assert http.get("/v1/models").json()["data"][0]["id"] == MODEL
    page = http.get("/metrics").text
    for name in ("tgi_queue_size", "tgi_batch_current_max_tokens", "tgi_batch_total_tokens"):
        assert f"\n{name} " in page
    assert http.get("/emulator/stats").json()["joules"] > 0
