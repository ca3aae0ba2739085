"""Pure: bodies of TGI's routes, checked and refused as its router does."""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from simulator.emulator_text import chat_text, text_tokens

Body = Mapping[str, object]


class Refusal(Exception):
    """A request TGI answers with an error. `kind` is empty for the plain text of its web framework."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message

    def body(self) -> bytes:
        if not self.kind:
            return self.message.encode()
        return orjson.dumps({"error": self.message, "error_type": self.kind})


@dataclass(frozen=True, slots=True)
class TgiAsk:
    prompt: str
    prompt_tokens: int
    longest: int  # output tokens it may get at most
    stream: bool
    details: bool
    include_usage: bool
    model: str  # echoed by the OpenAI routes


def parse_generate(content_type: bytes, raw: bytes, max_total: int) -> TgiAsk:
    """A /generate, /generate_stream or / body. Raises Refusal."""
    body = _object(content_type, raw)
    inputs = body.get("inputs")
    if not isinstance(inputs, str):
        raise _undecodable("missing field `inputs`")
    given = body.get("parameters")
    parameters: Body = given if isinstance(given, dict) else {}
    tokens = text_tokens(inputs)
    longest = _longest(parameters, "max_new_tokens", tokens, max_total)
    details = parameters.get("details") is True
    return TgiAsk(inputs, tokens, longest, body.get("stream") is True, details, False, "")


def parse_openai(content_type: bytes, raw: bytes, chat: bool, model: str, max_total: int) -> TgiAsk:
    """A /v1/chat/completions or /v1/completions body. Any model is taken, and echoed. Raises Refusal."""
    body = _object(content_type, raw)
    prompt, tokens = _conversation(body) if chat else _prompt(body)
    named = body.get("model")
    options = body.get("stream_options")
    return TgiAsk(
        prompt=prompt,
        prompt_tokens=tokens,
        longest=_longest(body, "max_tokens", tokens, max_total),
        stream=body.get("stream") is True,
        details=False,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        model=named if isinstance(named, str) and named != "tgi" else model,
    )


def _object(content_type: bytes, raw: bytes) -> Body:
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise Refusal(415, "", "Expected request with `Content-Type: application/json`")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "", f"Failed to parse the request body as JSON: {error}") from error
    if not isinstance(body, dict):
        raise _undecodable("invalid type: expected struct")
    return body


def _conversation(body: Body) -> tuple[str, int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _undecodable("missing field `messages`")
    if not messages:
        raise Refusal(422, "template_error", "Template error: no messages")
    return chat_text(messages)


def _prompt(body: Body) -> tuple[str, int]:
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise _undecodable("missing field `prompt`")
    return prompt, text_tokens(prompt)


def _longest(body: Body, key: str, tokens: int, max_total: int) -> int:
    asked = body.get(key)
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 0):
        raise _undecodable(f"{key}: invalid value, expected u32")
    if asked == 0:
        raise _invalid("`max_new_tokens` must be strictly positive")
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature < 0:
        raise _invalid("`temperature` must be strictly positive")
    if tokens >= max_total:
        raise _invalid(f"`inputs` must have less than {max_total} tokens. Given: {tokens}")
    if isinstance(asked, int) and tokens + asked > max_total:
        raise _invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total}. "
            f"Given: {tokens} `inputs` tokens and {asked} `max_new_tokens`"
        )
    return asked if isinstance(asked, int) else max_total - tokens


def _invalid(text: str) -> Refusal:
    return Refusal(422, "validation", f"Input validation error: {text}")


def _undecodable(text: str) -> Refusal:
    message = f"Failed to deserialize the JSON body into the target type: {text}"
    return Refusal(422, "", message)
