"""langchain-openai against one base URL; prints what it saw as JSON. Runs in a Python of its own."""

import asyncio
import json
import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Paint(BaseModel):
    """Paint something."""

    colour: Literal["red", "green"]


def main() -> None:
    url, key, model = sys.argv[1:]
    chat = ChatOpenAI(
        model=model, base_url=url, api_key=key, temperature=0, max_tokens=48, max_retries=0, stream_usage=True
    )
    answer = chat.invoke("Name three colours.")
    chunks = list(chat.stream("Name three colours."))
    bound = chat.bind_tools([Paint], tool_choice="Paint")
    seen = {
        "chat": answer.content,
        "usage": answer.usage_metadata["total_tokens"],
        "stream": "".join(chunk.content for chunk in chunks),
        "stream_usage": sum(c.usage_metadata["total_tokens"] for c in chunks if c.usage_metadata),
        "tools": [call["args"] for call in bound.invoke("Paint it.").tool_calls],
        "async": asyncio.run(chat.ainvoke("Name three colours.")).content,
        "batch": [one.content for one in chat.batch(["one", "two"])],
    }
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main()
