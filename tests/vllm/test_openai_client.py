"""An unmodified OpenAI client sees the same through the gateway as it sees directly."""

import asyncio
from collections.abc import Callable

import openai
import pytest
from openai.types.chat import ChatCompletionStreamOptionsParam

from tests.vllm.questions import COLOUR, MESSAGES, PAINT, PAINTING
from tests.vllm.servers import API_KEY, MODEL, Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
OWN_EVERY_TIME = {"id": None, "created": None}


def chat(client: openai.OpenAI) -> dict[str, object]:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0)
    assert answer.usage is not None
    return answer.model_dump() | OWN_EVERY_TIME


def completion(client: openai.OpenAI) -> dict[str, object]:
    answer = client.completions.create(model=MODEL, prompt="def main():", max_tokens=24, temperature=0)
    return answer.model_dump() | OWN_EVERY_TIME


def logprobs(client: openai.OpenAI) -> dict[str, object]:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    return answer.model_dump() | OWN_EVERY_TIME


def several(client: openai.OpenAI) -> dict[str, object]:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, n=2, seed=7)
    assert len(answer.choices) == 2
    return answer.model_dump() | OWN_EVERY_TIME


def token_ids(client: openai.OpenAI) -> dict[str, object]:
    prompt = [10, 20, 30, 40]
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0)
    return answer.model_dump() | OWN_EVERY_TIME


def structured(client: openai.OpenAI) -> dict[str, object]:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=32,
        temperature=0,
        response_format=COLOUR,
    )
    return answer.model_dump() | OWN_EVERY_TIME


def tool(client: openai.OpenAI) -> list[tuple[str, str]]:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=32,
        temperature=0,
        tools=[PAINT],
        tool_choice=PAINTING,
    )
    calls = answer.choices[0].message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls if call.type == "function"]


@pytest.mark.parametrize("ask", [chat, completion, logprobs, several, token_ids, structured, tool])
def test_an_answer_is_the_same_as_direct(
    ask: Callable[[openai.OpenAI], object], client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    assert ask(client) == ask(direct)


def streamed(client: openai.OpenAI, *, usage: bool) -> tuple[str, list[dict[str, object]]]:
    """The text, and the chunks without it: each kind once, in order.

    How many tokens share a chunk is vLLM's affair: on a busy machine it puts several into one.
    """
    asked: ChatCompletionStreamOptionsParam = {"include_usage": True}
    text, kinds = "", []
    with client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options=asked if usage else openai.omit,
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                choice.delta.content = None
            kind = chunk.model_dump() | OWN_EVERY_TIME
            if kind not in kinds:
                kinds.append(kind)
    return text, kinds


def test_a_stream_with_usage_is_the_same_as_direct(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    text, kinds = streamed(client, usage=True)
    assert (text, kinds) == streamed(direct, usage=True)
    assert text
    assert kinds[-1]["usage"]


def test_a_stream_without_usage_has_no_usage_chunk(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """vLLM puts the fingerprint into the usage chunk that the gateway asks for and takes out again."""

    def bare(stream: tuple[str, list[dict[str, object]]]) -> tuple[str, list[dict[str, object]]]:
        return stream[0], [kind | {"system_fingerprint": None} for kind in stream[1]]

    through = bare(streamed(client, usage=False))
    assert through == bare(streamed(direct, usage=False))
    assert not any(kind["usage"] for kind in through[1])


def test_a_streamed_completion_is_the_same_as_direct(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    def text(asked: openai.OpenAI) -> str:
        with asked.completions.create(
            model=MODEL, prompt="import os", max_tokens=16, temperature=0, stream=True
        ) as stream:
            return "".join(choice.text for chunk in stream for choice in chunk.choices)

    assert text(client) == text(direct) != ""


def too_long(client: openai.OpenAI) -> object:
    return client.completions.create(model=MODEL, prompt="word " * 5000, max_tokens=4)


def too_hot(client: openai.OpenAI) -> object:
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)


def no_messages(client: openai.OpenAI) -> object:
    return client.chat.completions.create(model=MODEL, messages=[])


def usage_of_no_stream(client: openai.OpenAI) -> object:
    return client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream_options={"include_usage": True}
    )


@pytest.mark.parametrize("ask", [too_long, too_hot, no_messages, usage_of_no_stream])
def test_what_vllm_refuses_is_refused_in_its_words(
    ask: Callable[[openai.OpenAI], object], client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as through:
        ask(client)
    with pytest.raises(openai.BadRequestError) as plain:
        ask(direct)
    assert through.value.body == plain.value.body


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


def test_a_wrong_key_is_refused(client: openai.OpenAI) -> None:
    stranger = client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=MODEL, messages=MESSAGES)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_responses_pass_through(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=8)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8


def test_what_vllm_does_not_have_is_its_own_404(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    for asked in (client, direct):
        with pytest.raises(openai.NotFoundError):
            asked.embeddings.create(model=MODEL, input="hello")


async def test_many_at_once_are_all_answered_by_both_servers(
    gateway: Server, engines: tuple[Server, Server]
) -> None:
    before = [engine.metric("vllm:request_success_total") for engine in engines]
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=API_KEY, max_retries=0) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model=MODEL,
                    prompt=f"{number} bottles",
                    max_tokens=100,
                    extra_body={"min_tokens": 100, "ignore_eos": True},
                )
                for number in range(24)
            )
        )
    assert [answer.usage and answer.usage.completion_tokens for answer in answers] == [100] * 24
    after = [engine.metric("vllm:request_success_total") for engine in engines]
    shares = [now - then for now, then in zip(after, before, strict=True)]
    assert sum(shares) == 24
    assert min(shares) > 0
