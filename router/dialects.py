"""Pure: how each route speaks in a stream: which events carry output, where usage is, how an error is said.

Events are counted by a mark that occurs once in every event with output and in no text a model can produce
(inside a JSON string its quotes would be escaped). Only the events up to the first one with output are
parsed, and the few that carry usage or an error.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from router.errors import GatewayError, translate_object
from router.ports import Endpoint, Engine
from router.sse import ENDS, Cutter, events, payload

Json = dict[str, object]
USAGE = re.compile(rb'"usage"\s*:\s*\{')
# as vLLM and TGI write it: plain fields, then at most one object of details
COUNTS = re.compile(
    rb'"usage": ?\{"prompt_tokens": ?(\d{1,8}), ?"total_tokens": ?\d+, ?"completion_tokens": ?(\d{1,8})'
    rb'(?:, ?"prompt_tokens_details": ?(?:null|\{[^{}]*?"cached_tokens": ?(\d{1,8})[^{}]*\}))?\}'
)
MOST_TOKENS = 10**8  # of one answer: more would put its key into debt for days, and is nobody's count
NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
DONE = b"data: [DONE]\n\n"


class Usage(NamedTuple):
    """Tokens as the engine counted them; None: it did not say."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Dialect:
    name: str
    mark: bytes  # once in every event with output
    has_output: Callable[[Json], bool]
    error_marks: tuple[bytes, ...]
    translates: bool  # engines' errors are put into OpenAI's shape
    takes_usage_option: bool  # `stream_options.include_usage` is a field of this route


def _chat_output(event: Json) -> bool:
    for choice in _objects(event.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role"):
            return True
    return False


def _text_output(event: Json) -> bool:
    return any(choice.get("text") for choice in _objects(event.get("choices")))


def _typed_output(event: Json) -> bool:
    kind = event.get("type")
    return isinstance(kind, str) and kind.endswith(".delta")


def _block_output(event: Json) -> bool:
    return event.get("type") == "content_block_delta"


def _token_output(event: Json) -> bool:
    return isinstance(event.get("token"), dict)


def _no_output(event: Json) -> bool:
    return False


ERROR = b'"error"'  # a key, or a value that is the whole of a string: in a text its quotes are escaped
CHAT = Dialect("chat", b'"delta"', _chat_output, (ERROR,), True, True)
COMPLETIONS = Dialect("completions", b'"text"', _text_output, (ERROR,), True, True)
RESPONSES = Dialect(
    "responses",
    b'.delta"',
    _typed_output,
    (ERROR, b"event: error", b"event: response.failed"),
    True,
    False,
)
MESSAGES = Dialect("messages", b'"content_block_delta"', _block_output, (ERROR, b"event: error"), True, False)
TGI = Dialect("tgi", b'"token"', _token_output, (ERROR,), False, False)
OTHER = Dialect("other", b'"\0"', _no_output, (ERROR,), True, False)

DIALECTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/generate": TGI,
    "/generate_stream": TGI,
}


def dialect_of(route: str) -> Dialect:
    return DIALECTS.get(route.rstrip("/"), OTHER)


def injects_usage(dialect: Dialect, endpoint: Endpoint) -> bool:
    """Whether this instance may be asked for usage in place of the client."""
    return dialect.takes_usage_option and endpoint.usage_injection and endpoint.engine is not Engine.OPENAI


def usage_of(body: bytes) -> Usage:
    """The usage in a whole answer, or in the last event that has one.

    Most answers are only looked at where their usage is; those of another shape are parsed.
    """
    start = body.rfind(b'"usage":')
    if start >= 0:
        match = COUNTS.match(body, start)
        if match is not None:
            prompt, completion, cached = match.groups()
            return Usage(int(prompt), int(completion), None if cached is None else int(cached))
    found = _json(body)
    return usage_in(found) if found is not None else NO_USAGE


def usage_in(found: Json) -> Usage:
    """From OpenAI's, Anthropic's or TGI's own fields."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        inner = found.get("response") or found.get("message")
        usage = inner.get("usage") if isinstance(inner, dict) else None
    if not isinstance(usage, dict):
        details = found.get("details")
        if isinstance(details, dict):
            return Usage(None, _count(details.get("generated_tokens")), None)
        return Usage()
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = (
        details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    )
    return Usage(_count(prompt), _count(completion), _count(cached))


def error_event(dialect: Dialect, error: GatewayError) -> bytes:
    """How a stream that has begun says that it failed, to its end."""
    if dialect is RESPONSES:
        body = {"type": "error", "code": error.code, "message": error.message, "param": None}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(body)
    if dialect is MESSAGES:
        inner = {"type": "api_error", "message": error.message}
        return b"event: error\ndata: %b\n\n" % orjson.dumps({"type": "error", "error": inner})
    if dialect is TGI:
        return b"data: %b\n\n" % orjson.dumps({"error": error.message, "error_type": "generation"})
    said = b"data: %b\n\n" % error.body()
    return said if dialect is OTHER else said + DONE


class Tap:
    """Watches one event stream as it passes; takes out the usage event if the gateway asked for it.

    The bytes that come out are the bytes that went in, but for that event and for errors that are put into
    OpenAI's shape; where the stream was cut makes no difference.
    """

    __slots__ = ("_cutter", "_first", "_last", "count", "dialect", "edit", "failed", "has_output", "strip")

    def __init__(self, dialect: Dialect, strip: bool, edit: Callable[[bytes], bytes] | None = None) -> None:
        """`edit`: what becomes of the usage event that the client asked for."""
        self.dialect = dialect
        self.edit = edit
        self.strip = strip
        self.count = 0  # events with output so far
        self.has_output = False
        self.failed = ""  # what an error event inside the stream said
        self._cutter = Cutter()
        self._first = b""  # events that carry usage
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        cutter = self._cutter
        if cutter.held or cutter.inside or not data.endswith(ENDS):
            data = cutter.feed(data)
            if not data:
                return data
        if self.has_output:
            self.count += data.count(self.dialect.mark)
        else:
            self._look_for_output(data)
        if b'"usage"' in data and USAGE.search(data):
            data = self._inspect(data)
        else:
            for mark in self.dialect.error_marks:
                if mark in data:
                    return self._inspect(data)
        return data

    def end(self) -> bytes:
        """What is left when the stream has ended."""
        rest = self._cutter.rest()
        return self._inspect(rest) if rest else rest

    def broken(self, error: GatewayError) -> bytes:
        """What to send when the stream will not go on: an unfinished event is dropped, the error said."""
        self._cutter.rest()
        closing = b"\n\n" if self._cutter.inside else b""
        return closing + error_event(self.dialect, error)

    def usage(self) -> Usage:
        first = usage_of(payload(self._first)) if self._first else Usage()
        last = usage_of(payload(self._last)) if self._last else Usage()
        return Usage(
            first.prompt if last.prompt is None else last.prompt,
            first.completion if last.completion is None else last.completion,
            first.cached if last.cached is None else last.cached,
        )

    def _look_for_output(self, data: bytes) -> None:
        mark = self.dialect.mark
        for event in events(data):
            if self.has_output:
                self.count += event.count(mark)
            elif mark in event:
                found = _json(payload(event))
                if found is not None and self.dialect.has_output(found):
                    self.has_output = True
                    self.count += 1

    def _inspect(self, data: bytes) -> bytes:
        out = []
        for event in events(data):
            if USAGE.search(event):
                last = (self.strip or self.edit) and NO_CHOICES.search(event) and self._is_usage_only(event)
                self._last = event
                if last and self.strip:
                    continue
                self._first = self._first or event
                if last and self.edit is not None:
                    event = self.edit(event)
            out.append(self._translated(event) if self._is_error(event) else event)
        return b"".join(out)

    def _is_usage_only(self, event: bytes) -> bool:
        found = _json(payload(event))
        return found is not None and found.get("choices") == [] and isinstance(found.get("usage"), dict)

    def _is_error(self, event: bytes) -> bool:
        marks = self.dialect.error_marks
        if not any(mark in event for mark in marks):  # of many events in one read, most need no second look
            return False
        said = payload(event)
        if not any(event.startswith(mark) for mark in marks[1:]) and not _says_error(_json(said)):
            return False
        self.failed = said[:500].decode("utf-8", "replace")
        return True

    def _translated(self, event: bytes) -> bytes:
        if not self.dialect.translates or not event.startswith(b"data:"):
            return event
        found = _json(payload(event))
        if found is None or "choices" in found or found.get("type") == "error":
            return event  # it is the route's own, or says more than that
        object_ = translate_object(500, found)
        return event if object_ is None else b"data: %b\n\n" % orjson.dumps(object_)


def _json(text: bytes) -> Json | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _says_error(found: Json | None) -> bool:
    """`{"error": ...}` as engines write it, an event that is one, or the object without its envelope."""
    if found is None:
        return False
    error = found.get("error")
    if isinstance(error, dict | str) and error:
        return True
    return found.get("type") == "error" or found.get("object") == "error"


def _objects(found: object) -> list[Json]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _count(found: object) -> int | None:
    return found if type(found) is int and 0 <= found < MOST_TOKENS else None
