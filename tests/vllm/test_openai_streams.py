"""What an unmodified OpenAI client reads from a stream is the same through the gateway as directly."""

from collections.abc import Callable

import openai
import pytest

from tests.vllm.questions import COLOUR, MESSAGES, PAINT, PAINTING
from tests.vllm.servers import API_KEY, MODEL, Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def tool_call(client: openai.OpenAI) -> tuple[str, str]:
    """The name and the arguments, put together from their pieces."""
    name = arguments = ""
    with client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=32,
        temperature=0,
        stream=True,
        tools=[PAINT],
        tool_choice=PAINTING,
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    assert call.function is not None
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
    assert name == "paint"
    return name, arguments


def structured(client: openai.OpenAI) -> str:
    """The text; a model of random weights may fill all of it with spaces."""
    with client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=32,
        temperature=0,
        stream=True,
        response_format=COLOUR,
    ) as stream:
        text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text.startswith("{")
    return text


def response(client: openai.OpenAI) -> tuple[str, list[str]]:
    """The text, and which events came, each kind once, in order."""
    text, kinds = "", list[str]()
    with client.responses.create(
        model=MODEL, input="Hello", max_output_tokens=8, temperature=0, stream=True
    ) as stream:
        for event in stream:
            text += event.delta if event.type == "response.output_text.delta" else ""
            if event.type not in kinds:
                kinds.append(event.type)
    assert text
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed" or kinds[-1] == "response.incomplete"
    return text, kinds


@pytest.mark.parametrize("ask", [tool_call, structured, response])
def test_a_stream_is_read_as_directly(
    ask: Callable[[openai.OpenAI], object], client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    assert ask(client) == ask(direct)


async def test_an_async_stream_is_read_as_directly(gateway: Server, engines: tuple[Server, Server]) -> None:
    async def text(url: str) -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as asking:
            stream = await asking.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, stream=True
            )
            found = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
        return "".join(found)

    through = await text(gateway.url)
    assert through
    assert through == await text(engines[0].url)
