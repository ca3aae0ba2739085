"""Pure: what routing reads in a request body, the one edit that is made to it, and the list of models.

The body is parsed once; it goes to the engine as it came. When the engine is asked for usage in place of
the client, `stream_options` is spliced into the bytes, so that what the gateway does not understand (a key
given twice, 1e400, spacing) stays as it was: right after the opening brace when there is none, over the
value's bytes when there is one. A body that is not parsed, since it would take too much memory or is no JSON
that we read, is skimmed: who is asked for, and whether for a stream.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from joulegate.domain import LengthQuery
from joulegate.messages import content_text
from router import body_weight, forms, responses
from router.json_bytes import TooMany, members, value_spans
from router.ports import ModelCard

JSON_KEYS = frozenset({"response_format", "text", "guided_json", "structured_outputs"})
STOP_KEYS = frozenset({"stop", "stop_sequences"})
CAPS = frozenset({"max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens"})
SYSTEM = frozenset({"system", "developer"})
HEAD_CHARS = 1600
TAIL_CHARS = 800
FINGERPRINT_BYTES = 64 * 1024  # of each end
CHARS_PER_ID = 4  # a token id counts as so many
SECOND_TRY = 1024 * 1024  # bytes: the slow parser takes no more
MAX_INTEGER = 2**31
SKIMMED = 8 * 1024 * 1024  # bytes: larger ones are not
END = 16  # bytes
INJECTED = b'"stream_options":{"include_usage":true}'
GENERATIVE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/generate",
        "/generate_stream",
    }
)
Json = dict[str, object]


@dataclass(slots=True)  # not frozen: made for every request, see ports.RelayRequest
class Parsed:
    """What a body says that matters here. A body that is no JSON object leaves the defaults."""

    query: LengthQuery
    stream: bool = False
    input_chars: int = 0
    options: Json | None = None  # stream_options, when given
    has_options: bool = False
    previous: str = ""  # the response that a request for one goes on from
    form: bool = False  # no JSON: it names the model between its parts


class _Text:
    """What the text of one request adds up to."""

    __slots__ = ("chars", "last", "parent", "prompts", "system", "tokens", "whole")

    def __init__(self) -> None:
        self.chars = 0
        self.tokens = 0  # of prompts given as token ids
        self.system = 0
        self.parent = 0
        self.whole = 0  # of all messages so far
        self.prompts = 1
        self.last = ""  # of the user

    def add(self, role: str, text: str) -> None:
        if role == "assistant":
            self.parent = self.turn()
        size = len(text)
        self.chars += size
        said = f"{role}:{text}" if size <= 512 else f"{role}:{size}:{text[:256]}{text[-256:]}"
        self.whole = zlib.crc32(said.encode("utf-8", "surrogatepass"), self.whole)
        if role == "user":
            self.last = text
        elif role in SYSTEM:
            self.system = self.turn()

    def turn(self) -> int:
        """Names the conversation so far."""
        return (self.chars << 32) | self.whole if self.whole else 0


def parse(route: str, body: bytes | bytearray, content_type: bytes, key: str) -> Parsed:
    """`route` is a canonical path; `key` the caller's name."""
    if content_type.startswith(b"multipart/"):
        return Parsed(LengthQuery(forms.model_of(body, content_type), key, 0), form=True)
    loaded = _load(body)
    if loaded is None:
        return _skimmed(body, key)
    found, ids = loaded
    get = found.get
    text = _text(found)
    text.tokens += ids
    text.chars += CHARS_PER_ID * ids
    limits = found
    if "parameters" in found and isinstance(inner := get("parameters"), dict):
        limits = inner  # TGI's own routes
    options = get("stream_options")
    n, last = get("n"), text.last
    return Parsed(
        LengthQuery(
            _model(found),
            key,
            text.tokens,
            _cap(limits),
            text.prompts if n is None else text.prompts * max(1, _integer(n) or 1),
            text.system,
            text.parent,
            bool(get("tools")),
            not JSON_KEYS.isdisjoint(found) and _json_mode(found),
            not STOP_KEYS.isdisjoint(limits) and bool(limits.get("stop") or limits.get("stop_sequences")),
            last[:HEAD_CHARS],
            last[-TAIL_CHARS:],
            text.turn(),
        ),
        get("stream") is True or route == "/generate_stream",
        text.chars,
        options if isinstance(options, dict) else None,
        options is not None or "stream_options" in found,
        _string(get("previous_response_id")) if route == responses.ROUTE else "",
    )


def asks_usage(parsed: Parsed) -> bool:
    return parsed.options is not None and parsed.options.get("include_usage") is True


def may_inject(parsed: Parsed) -> bool:
    """Whether asking for usage changes nothing else.

    With `continuous_usage_stats` set and `include_usage` not, asking would switch the former on.
    """
    if not parsed.stream or asks_usage(parsed):
        return False
    return parsed.options is None or not parsed.options.get("continuous_usage_stats")


def with_usage(body: bytes | bytearray, parsed: Parsed) -> list[bytes | bytearray | memoryview] | None:
    """The body, asking for usage, as pieces to write; None: it cannot be done safely."""
    view = memoryview(body)
    if not parsed.has_options:
        brace = body.find(b"{") + 1
        return [bytes(view[:brace]), INJECTED + b",", view[brace:]]
    spans = value_spans(body, "stream_options")
    if len(spans) != 1:
        return None  # given twice, or with an escape in its name
    start, end = spans[0]
    options = _asking(bytes(view[start:end]))
    return None if options is None else [view[:start], options, view[end:]]


def _asking(options: bytes) -> bytes | None:
    """The text of `stream_options`, asking for usage and otherwise as it was; None: it is no object."""
    if options == b"null":
        return b'{"include_usage":true}'
    if not options.startswith(b"{"):
        return None
    spans = value_spans(options, "include_usage")
    if len(spans) > 1:
        return None
    if spans:
        start, end = spans[0]
        return options[:start] + b"true" + options[end:]
    rest = options[1:]
    comma = b"" if rest.lstrip().startswith(b"}") else b","
    return b'{"include_usage":true' + comma + rest


def fingerprint(body: bytes | bytearray) -> int:
    """The same for the same body: what killed one engine is not sent to the next."""
    if len(body) <= 2 * FINGERPRINT_BYTES:
        return (len(body) << 32) | zlib.crc32(body)
    view = memoryview(body)
    return (len(body) << 32) | zlib.crc32(view[-FINGERPRINT_BYTES:], zlib.crc32(view[:FINGERPRINT_BYTES]))


def model_list(cards: Sequence[ModelCard]) -> bytes:
    return orjson.dumps({"object": "list", "data": [_card(card) for card in cards]})


def model_card(card: ModelCard) -> bytes:
    return orjson.dumps(_card(card))


def _card(card: ModelCard) -> Json:
    found: Json = {"id": card.id, "object": "model", "created": 0, "owned_by": card.owned_by}
    if card.max_model_len is not None:
        found["max_model_len"] = card.max_model_len
    return {**found, **card.extra}


def _load(body: bytes | bytearray) -> tuple[Json, int] | None:
    """The object, and how many token ids were taken out of it; None: no JSON object, or too much of one."""
    weighed = body_weight.weighed(body)
    if weighed is None:
        return None
    text, ids = weighed
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        # engines take what orjson does not: NaN, a lone half of a surrogate pair
        if len(text) > SECOND_TRY:
            return None
        try:
            found = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return None
    return (found, ids) if isinstance(found, dict) else None


def _text(found: Json) -> _Text:
    text = _Text()
    messages = found.get("messages")
    if messages is None or "system" in found:
        system = found.get("instructions") or found.get("system")
        if system:
            text.add("system", content_text(system))
    if messages is None:
        messages = found.get("input")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                role, content = message.get("role"), message.get("content")
                text.add(
                    role if isinstance(role, str) else "",
                    content if isinstance(content, str) else content_text(content),
                )
            else:
                text.add("user", content_text(message))
    elif isinstance(messages, str):
        text.add("user", messages)
    else:
        _prompt(text, found.get("prompt", found.get("inputs")))
    return text


def _skimmed(body: bytes | bytearray, key: str) -> Parsed:
    """Of a body that is not parsed. What is found in what is no JSON does not matter: no engine takes it."""
    text = len(body) <= SKIMMED and b"\0" not in body  # else it is in an encoding that is not ours
    found = _looked_up(body) if text and body[-END:].rstrip().endswith(b"}") else {}
    options = found.get("stream_options")
    return Parsed(
        LengthQuery(_model(found), key, 0),
        found.get("stream") is True,
        len(body),
        options if isinstance(options, dict) else None,
        "stream_options" in found,
    )


def _looked_up(body: bytes | bytearray) -> Json:
    found: Json = {}
    try:
        for name, value in members(body, ("model", "stream", "stream_options")):
            found[name] = orjson.loads(value)
    except (TooMany, orjson.JSONDecodeError):
        return {}
    return found


def _model(found: Json) -> str:
    """ "" where it is not given, or where an engine that does not mind case would read another."""
    for key in found:
        if len(key) == 5 and key != "model" and key.lower() == "model":
            return ""
    return _string(found.get("model"))


def _prompt(text: _Text, prompt: object) -> None:
    """A completion's prompt: text, token ids, or a list of either."""
    if isinstance(prompt, str):
        text.add("user", prompt)
    elif isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            text.tokens += len(prompt)
            text.chars += CHARS_PER_ID * len(prompt)
            return
        text.prompts = len(prompt)
        for one in prompt:
            if isinstance(one, str):
                text.add("user", one)
            elif isinstance(one, list):
                text.tokens += len(one)
                text.chars += CHARS_PER_ID * len(one)


def _cap(found: Json) -> int | None:
    if CAPS.isdisjoint(found):
        return None
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens"):
        size = _integer(found.get(name))
        if size is not None and size > 0:
            return size
    return None


def _json_mode(found: Json) -> bool:
    wanted = found.get("response_format")
    if wanted is None and isinstance(text := found.get("text"), dict):
        wanted = text.get("format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    return kind in ("json_object", "json_schema") or bool(
        found.get("guided_json") or found.get("structured_outputs")
    )


def _integer(found: object) -> int | None:
    """None for what no engine takes for a number of tokens either: a number of any length is JSON."""
    return found if type(found) is int and -MAX_INTEGER < found < MAX_INTEGER else None


def _string(found: object) -> str:
    return found if isinstance(found, str) else ""
