"""Pure: what an answer's status, or its failure, says about the instance, and what is tried next."""

import re

import orjson

from router.errors import (
    GatewayBusy,
    GatewayError,
    KeyRefused,
    Resteered,
    Squashed,
    UpstreamError,
    UpstreamSilent,
)
from router.ports import Ending

BUSY = frozenset({408, 429, 529})
# vLLM's queue limit answers 503 with a text of this kind, a dead engine with another
BUSY_WORDS = (b"busy", b"overloaded", b"different instance", b"try again")
DEAD_WORDS = (b"EngineCore encountered", b"EngineDead")  # vLLM's last words: its process ends with them
# as vLLM of any version and ollama say it; others say it by `param` or `code`
NO_MODEL = re.compile(r"(?is)\bmodel\b.*\b(?:does not exist|not found)\b")
REFUSED_UNREAD = frozenset({Ending.UPSTREAM_BUSY, Ending.KEY_REFUSED, Ending.NO_MODEL})  # surely not begun
ANOTHER = REFUSED_UNREAD | {Ending.UPSTREAM_DOWN, Ending.UPSTREAM_ERROR, Ending.RESTEERED}
FAILURES = {
    UpstreamSilent: Ending.TIMEOUT,
    Resteered: Ending.RESTEERED,
    Squashed: Ending.SHED,
    KeyRefused: Ending.KEY_REFUSED,
    GatewayBusy: Ending.REFUSED,
}


def ending_of(status: int, body: bytes) -> Ending:
    """How a whole answer, or an error inside a stream (500), ends its request.

    424 is TGI's word for a generation that failed.
    """
    if status < 400:
        return Ending.OK
    if status in BUSY:
        return Ending.UPSTREAM_BUSY
    if status == 503 and any(word in body for word in BUSY_WORDS):
        return Ending.UPSTREAM_BUSY
    if status == 500 and any(word in body for word in DEAD_WORDS):
        return Ending.UPSTREAM_DOWN
    if status >= 500 or status == 424:
        return Ending.UPSTREAM_ERROR
    return Ending.NO_MODEL if status == 404 and _no_model(body) else Ending.CLIENT_ERROR


def _no_model(body: bytes) -> bool:
    """Whether a 404 is about the model: we only ask for those that an instance is there for."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    error = found.get("error", found) if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return False
    if error.get("param") == "model" or error.get("code") == "model_not_found":
        return True
    message = error.get("message")
    return isinstance(message, str) and NO_MODEL.search(message) is not None


def ending_of_failure(error: GatewayError) -> Ending:
    return FAILURES.get(type(error), Ending.UPSTREAM_DOWN)


def try_another(ending: Ending, error: GatewayError | None, repeatable: bool) -> bool:
    """Whether another instance may be asked, before the first byte of an answer.

    A request that is not repeatable only goes elsewhere if this instance has surely not begun it.
    """
    if ending not in ANOTHER:
        return False
    if repeatable or ending in REFUSED_UNREAD:
        return True
    return isinstance(error, UpstreamError) and error.unsent
