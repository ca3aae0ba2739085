"""Shell: an unmodified `openai` client that streams from both gateways while the load runs.

Run as `python -m simulator.demo_client SECONDS MODEL URL...`; prints {"streams": n, "errors": n} at its end.
"""

import json
import sys
import time

from openai import APIError, OpenAI

PAUSE = 1.0  # seconds between two questions
QUESTION = "In one sentence: why does a GPU need less energy for a token at a lower clock?"


def main(seconds: float, model: str, urls: list[str]) -> None:
    """Ask every gateway the same, again and again. A stream must bring text and end."""
    clients = [OpenAI(base_url=f"{url}/v1", api_key="demo", max_retries=0, timeout=30.0) for url in urls]
    streams = errors = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for client in clients:
            try:
                streams += 1
                errors += not _streamed(client, model)
            except APIError:
                errors += 1
        time.sleep(PAUSE)
    sys.stdout.write(json.dumps({"streams": streams, "errors": errors}))


def _streamed(client: OpenAI, model: str) -> bool:
    text, finished = "", False
    with client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=32, stream=True
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finished = finished or choice.finish_reason is not None
    return bool(text) and finished


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
