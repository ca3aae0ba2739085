import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from gpu_agent.plant import Plant
from joulegate.units import MegaHertz, Seconds
from tests.simulator.conftest import MODEL, RunningFleet

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def http(fleet: RunningFleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.urls["large"], timeout=20) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def gauge(http: httpx.Client, name: str) -> float:
    page = http.get("/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + "{"))


def chat(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **body})


def test_a_chat_stream_has_vllms_shape(http: httpx.Client) -> None:
    usage = {"include_usage": True}
    response = chat(http, max_tokens=5, ignore_eos=True, stream=True, stream_options=usage)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *tokens, last = events(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["object"] == "chat.completion.chunk"
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 4 + ["length"]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 10, "total_tokens": 15, "completion_tokens": 5}
    assert last["system_fingerprint"]
    assert "system_fingerprint" not in tokens[-1]


def test_without_usage_the_fingerprint_rides_on_the_last_token(http: httpx.Client) -> None:
    chunks = events(chat(http, max_tokens=3, ignore_eos=True, stream=True).text)
    assert len(chunks) == 4
    assert [("system_fingerprint" in chunk) for chunk in chunks] == [False] * 3 + [True]


def test_continuous_usage_counts_every_token(http: httpx.Client) -> None:
    wants = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(chat(http, max_tokens=3, ignore_eos=True, stream=True, stream_options=wants).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3]


def test_a_whole_chat_is_the_stream_put_together(http: httpx.Client) -> None:
    whole = chat(http, max_tokens=20, min_tokens=20).json()
    streamed = events(chat(http, max_tokens=20, min_tokens=20, stream=True).text)
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed)
    assert whole["choices"][0]["message"]["content"] == text
    assert whole["usage"]["completion_tokens"] == 20
    assert len(text) == 80


def test_two_choices_end_each_on_their_own(http: httpx.Client) -> None:
    chunks = events(chat(http, n=2, max_tokens=4, ignore_eos=True, stream=True).text)
    by_choice = [[c for c in chunks if c["choices"][0]["index"] == index] for index in (0, 1)]
    for mine in by_choice:
        assert mine[0]["choices"][0]["delta"]["role"] == "assistant"
        assert len(mine) == 5
        assert mine[-1]["choices"][0]["finish_reason"] == "length"
    assert chat(http, n=2, max_tokens=4, ignore_eos=True).json()["usage"]["completion_tokens"] == 8


def test_a_completions_stream_has_vllms_shape(http: httpx.Client) -> None:
    body = {"prompt": ["a b c", "d e f"], "max_tokens": 3, "ignore_eos": True, "stream": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == 1]
    assert [choice["finish_reason"] for choice in mine] == [None, None, "length"]
    assert all(choice["text"] for choice in mine)
    assert chunks[0]["object"] == "text_completion"
    assert http.post("/v1/completions", json=body | {"stream": False}).json()["usage"]["prompt_tokens"] == 4


def test_the_true_length_comes_by_header_and_ends_with_stop(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HELLO}
    headers = {"x-joulegate-true-output-tokens": "17"}
    reply = http.post("/v1/chat/completions", json=body, headers=headers).json()
    assert reply["usage"]["completion_tokens"] == 17
    assert reply["choices"][0]["finish_reason"] == "stop"
    capped = http.post("/v1/chat/completions", json=body | {"max_tokens": 5}, headers=headers).json()
    assert capped["usage"]["completion_tokens"] == 5
    assert capped["choices"][0]["finish_reason"] == "length"


def test_without_it_a_prompt_always_gets_the_same_length(http: httpx.Client) -> None:
    lengths = {chat(http).json()["usage"]["completion_tokens"] for _ in range(2)}
    other = chat(http, messages=[{"role": "user", "content": "another"}]).json()["usage"]["completion_tokens"]
    assert len(lengths) == 1
    assert other not in lengths


def test_a_callers_request_id_names_the_answer(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 1}
    reply = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "gw-1"})
    assert reply.json()["id"] == "chatcmpl-gw-1"


@pytest.mark.parametrize(
    ("body", "status", "kind", "param"),
    [
        pytest.param({"model": "nope"}, 404, "NotFoundError", "model", id="unknown model"),
        pytest.param({"messages": None}, 400, "Bad Request", "body.messages", id="no messages"),
        pytest.param({"messages": []}, 400, "BadRequestError", None, id="empty messages"),
        pytest.param({"max_tokens": 0}, 400, "BadRequestError", "max_tokens", id="no tokens"),
        pytest.param({"max_tokens": "abc"}, 400, "Bad Request", "body.max_tokens", id="not a number"),
        pytest.param({"max_tokens": 100_000}, 400, "BadRequestError", "max_tokens", id="too many"),
        pytest.param({"max_tokens": 5, "min_tokens": 9}, 400, "BadRequestError", None, id="min over max"),
        pytest.param({"n": 0}, 400, "BadRequestError", None, id="no choices"),
        pytest.param({"temperature": 9}, 400, "BadRequestError", "temperature", id="too hot"),
        pytest.param({"top_p": 2}, 400, "BadRequestError", "top_p", id="top_p"),
        pytest.param({"top_logprobs": 1000}, 400, "BadRequestError", "logprobs", id="logprobs"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "BadRequestError",
            None,
            id="an image",
        ),
        pytest.param(
            {"stream_options": {"include_usage": True}},
            400,
            "BadRequestError",
            "stream_options",
            id="options",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "x" * 40_000}]},
            400,
            "BadRequestError",
            "input_tokens",
            id="prompt too long",
        ),
    ],
)
def test_errors_are_vllms(
    http: httpx.Client, body: dict[str, Any], status: int, kind: str, param: str | None
) -> None:
    response = chat(http, **body)
    error = response.json()["error"]
    assert response.status_code == status
    assert (error["type"], error["param"], error["code"]) == (kind, param, status)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "reply"),
    [
        ("POST", "/v1/nothing", b"{}", 404, {"detail": "Not Found"}),
        ("GET", "/v1/chat/completions", b"", 405, {"detail": "Method Not Allowed"}),
    ],
)
def test_unknown_routes_and_methods(
    http: httpx.Client, method: str, path: str, content: bytes, status: int, reply: dict[str, str]
) -> None:
    response = http.request(method, path, content=content)
    assert (response.status_code, response.json()) == (status, reply)


@pytest.mark.parametrize("content", [b'{"model": "x",', b"[]", b""])
def test_a_broken_body_is_refused(http: httpx.Client, content: bytes) -> None:
    response = http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "Bad Request"


def test_the_small_routes(http: httpx.Client) -> None:
    assert http.get("/health").content == b""
    assert http.get("/version").json() == {"version": "0.32.0"}
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 8192
    assert http.post("/tokenize", json={"messages": HELLO}).json()["count"] == 10


def test_a_client_that_leaves_stops_the_work(http: httpx.Client) -> None:
    body = {"messages": HELLO, "max_tokens": 5000, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        parts = response.iter_bytes()
        next(parts)
        assert gauge(http, "vllm:num_requests_running") == 1
    deadline = time.monotonic() + 5
    while gauge(http, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
    assert gauge(http, "vllm:kv_cache_usage_perc") == 0


async def test_a_full_queue_is_refused(fleet: RunningFleet) -> None:
    client = httpx.AsyncClient(base_url=fleet.urls["small"], timeout=20)
    body = {"messages": HELLO, "max_tokens": 100, "ignore_eos": True}
    async with client:
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(8)))
    refused = [reply for reply in replies if reply.status_code == 503]
    assert len(refused) == 5  # two run, one waits
    assert refused[0].json()["error"]["type"] == "Service Unavailable"
    assert sum(reply.status_code == 200 for reply in replies) == 3


def test_the_openai_client_streams(fleet: RunningFleet) -> None:
    with openai.OpenAI(base_url=fleet.urls["large"] + "/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_a_sleeping_engine_holds_requests_until_it_wakes(fleet: RunningFleet, http: httpx.Client) -> None:
    assert http.post("/sleep?level=1").json() == {"status": "sleeping", "level": 1}
    assert http.get("/is_sleeping").json() == {"is_sleeping": True}
    hasty = httpx.Client(base_url=fleet.urls["large"], timeout=0.3)
    with hasty, pytest.raises(httpx.ReadTimeout):
        chat(hasty, max_tokens=1)
    assert gauge(http, "vllm:num_requests_waiting") == 0
    assert http.post("/wake_up").json()["status"] == "awake"
    assert chat(http, max_tokens=1).status_code == 200


def test_an_engine_can_be_told_to_turn_slow(http: httpx.Client) -> None:
    def engine_seconds() -> float:
        before = gauge(http, "vllm:inter_token_latency_seconds_sum")
        chat(http, max_tokens=50, ignore_eos=True)
        return gauge(http, "vllm:inter_token_latency_seconds_sum") - before

    usual = engine_seconds()
    assert http.post("/emulator/slowdown?ratio=1.5").json() == {"ratio": 1.5}
    slow = engine_seconds()
    assert http.post("/emulator/slowdown?ratio=0").status_code == 400
    http.post("/emulator/slowdown?ratio=1").raise_for_status()
    assert slow == pytest.approx(1.5 * usual, rel=0.02)


def test_a_lower_clock_makes_tokens_slower_and_cheaper(fleet: RunningFleet, http: httpx.Client) -> None:
    gpu = Plant.open(fleet.plant).gpus[0]

    def spent() -> tuple[float, float]:
        """(seconds a token in the engine's own time, watts while it runs)."""
        before = gauge(http, "vllm:inter_token_latency_seconds_sum")
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            parts = response.iter_bytes()
            next(parts)
            watts = gpu.watts_at(Seconds(time.monotonic()))
            for _ in parts:
                pass
        return (gauge(http, "vllm:inter_token_latency_seconds_sum") - before) / 149, watts

    body = {"messages": HELLO, "max_tokens": 150, "ignore_eos": True, "stream": True}
    fast, hungry = spent()
    gpu.lock(MegaHertz(510), MegaHertz(510), Seconds(time.monotonic()))
    time.sleep(0.1)  # the clock settles
    slow, frugal = spent()
    gpu.reset(Seconds(time.monotonic()))
    assert slow > 1.2 * fast
    assert frugal < 0.8 * hungry


def test_stats_tell_lateness_and_energy(fleet: RunningFleet, http: httpx.Client) -> None:
    chat(http, max_tokens=10, ignore_eos=True)
    stats = http.get("/emulator/stats").json()
    assert set(stats["gpu_joules"]) == {f"GPU-node-1-{index}" for index in range(3)}
    assert stats["joules"] == pytest.approx(sum(stats["gpu_joules"].values()))
    assert {"p50", "p99", "max"} == set(stats["lateness_ms"])
    assert stats["output_tokens"] >= 10
