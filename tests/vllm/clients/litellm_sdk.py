"""The litellm SDK against one base URL; prints what it saw as JSON. Runs in a Python of its own."""

import asyncio
import json
import sys

import litellm

MESSAGES = [{"role": "user", "content": "Name three colours."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}},
            "required": ["colour"],
        },
    },
}


def main() -> None:
    url, key, model = sys.argv[1:]
    to = {
        "model": f"hosted_vllm/{model}",
        "api_base": url,
        "api_key": key,
        "temperature": 0,
        "max_tokens": 48,
    }
    chat = litellm.completion(messages=MESSAGES, **to)
    streamed = litellm.completion(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **to
    )
    chunks = list(streamed)
    choice = {"type": "function", "function": {"name": "paint"}}
    called = litellm.completion(messages=MESSAGES, tools=[TOOL], tool_choice=choice, **to)
    awaited = asyncio.run(litellm.acompletion(messages=MESSAGES, **to))
    text = litellm.text_completion(prompt="def main():", **to)
    seen = {
        "chat": chat.choices[0].message.content,
        "usage": chat.usage.total_tokens,
        "stream": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "finish": [c.choices[0].finish_reason for c in chunks if c.choices][-1],
        "tools": [c.function.arguments for c in called.choices[0].message.tool_calls or []],
        "async": awaited.choices[0].message.content,
        "text": text.choices[0].text,
    }
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main()
