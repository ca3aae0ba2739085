"""Pure: what an answer's status, or its failure, says about the instance, and what is tried next."""

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
REFUSED_UNREAD = frozenset({Ending.UPSTREAM_BUSY, Ending.KEY_REFUSED})  # surely not begun
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
    return Ending.CLIENT_ERROR


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
