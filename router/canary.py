"""Shell: one token of an instance nobody uses yet: whether it answers, and as it did before."""

import orjson

from router.actuators import ActuationFailed
from router.http_client import ControlClient, Unreachable
from router.ports import Endpoint

PATH = "/v1/completions"
PROMPT = "The capital of France is"
WITHIN = 30.0  # seconds; a first request may compile what it needs


async def answer(client: ControlClient, endpoint: Endpoint) -> str:
    """The instance's first token. Raises ActuationFailed if there is none."""
    body = {"model": endpoint.model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    try:
        reply = await client.post(PATH, orjson.dumps(body), WITHIN)
    except Unreachable as error:
        raise ActuationFailed(str(error)) from error
    if reply.status != 200:
        raise ActuationFailed(f"{PATH} answered {reply.status}")
    try:
        text = orjson.loads(reply.body)["choices"][0]["text"]
    except (ValueError, LookupError, TypeError) as error:
        raise ActuationFailed(f"{PATH} answered without a choice") from error
    if not isinstance(text, str):
        raise ActuationFailed(f"{PATH} answered without text")
    return text
