"""Pure: bodies of vLLM's generation routes, checked in vLLM's order and refused in its words."""

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from simulator.emulator_text import chat_text, text_tokens

MOST_CHOICES = 16_384  # as vLLM's VLLM_MAX_N_SEQUENCES
Body = Mapping[str, object]
MAX_LOGPROBS = 20


class Rejection(Exception):
    """A request vLLM answers with an error object."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param


def rejection_body(rejection: Rejection) -> bytes:
    return orjson.dumps(
        {
            "error": {
                "message": rejection.message,
                "type": rejection.kind,
                "param": rejection.param,
                "code": rejection.status,
            }
        }
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for. `longest` is the most output tokens that it may get."""

    chat: bool
    prompts: tuple[Prompt, ...]
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    longest: int
    shortest: int
    ignore_eos: bool
    request_id: str


def parse_chat(content_type: bytes, raw: bytes, model: str, max_model_len: int) -> Ask:
    """Raises Rejection."""
    body = _object(content_type, raw)
    messages = _required(body, "messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid("list_type", "messages", "Input should be a valid list", messages)
    _check_model(body, model)
    if not messages:
        raise _bad("Cannot apply chat template to an empty conversation. Provide at least one message.", None)
    if any(_has_media(message.get("content")) for message in messages):
        raise _bad(f"{model} is not a multimodal model", None)
    text, tokens = chat_text(messages)
    return _ask(body, True, (Prompt(text, tokens),), max_model_len)


def parse_completion(content_type: bytes, raw: bytes, model: str, max_model_len: int) -> Ask:
    """Raises Rejection."""
    body = _object(content_type, raw)
    prompts = _prompts(_required(body, "prompt"))
    _check_model(body, model)
    return _ask(body, False, prompts, max_model_len)


def parse_tokenize(content_type: bytes, raw: bytes, model: str) -> int:
    """Tokens of a /tokenize body. Raises Rejection."""
    body = _object(content_type, raw)
    messages = body.get("messages")
    if isinstance(messages, list):
        return chat_text([message for message in messages if isinstance(message, dict)])[1]
    _check_model(body, model)
    return sum(prompt.tokens for prompt in _prompts(_required(body, "prompt")))


def _object(content_type: bytes, raw: bytes) -> Body:
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise Rejection(
            400,
            "Bad Request",
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        )
    if not raw:
        raise _invalid("missing", "", "Field required", None)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        message = (
            f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{error.pos}', "
            f"'msg': 'JSON decode error', 'ctx': {{'error': {error.msg!r}}}}}"
        )
        raise Rejection(400, "Bad Request", message, f"body.{error.pos}") from error
    if not isinstance(body, dict):
        text = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid("model_attributes_type", "", text, body)
    return body


def _required(body: Body, key: str) -> object:
    if body.get(key) is None:
        raise _invalid("missing", key, "Field required", body)
    return body[key]


def _check_model(body: Body, model: str) -> None:
    asked = body.get("model")
    if asked is not None and asked != model:
        text = f"The model `{asked}` does not exist. Valid aliases: {model}."
        raise Rejection(404, "NotFoundError", text, "model")


def _has_media(content: object) -> bool:
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, dict) and part.get("type") != "text" for part in parts)


def _prompts(prompt: object) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (Prompt(prompt, max(1, text_tokens(prompt))),)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(token, int) for token in prompt):
            return (Prompt(str(prompt), len(prompt)),)
        return tuple(found for item in prompt for found in _prompts(item))
    raise _invalid("string_type", "prompt", "Input should be a valid string", prompt)


def _ask(body: Body, chat: bool, prompts: tuple[Prompt, ...], max_model_len: int) -> Ask:
    stream = body.get("stream") is True
    options = body.get("stream_options")
    if options is not None and not stream:
        text = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise _bad(text, "stream_options")
    wants = options if isinstance(options, dict) else {}
    n = _integer(body, "n") or 1 if body.get("n") != 0 else 0
    if n < 1:
        raise _bad(f"n must be at least 1, got {n}.", None)
    if n > MOST_CHOICES:
        raise _bad(f"n must be at most {MOST_CHOICES}, got {n}.", None)
    _check_sampling(body)
    longest, shortest = _limits(body, chat, max(prompt.tokens for prompt in prompts), max_model_len)
    return Ask(
        chat=chat,
        prompts=prompts,
        n=n,
        stream=stream,
        include_usage=wants.get("include_usage") is True,
        continuous_usage=wants.get("include_usage") is True and wants.get("continuous_usage_stats") is True,
        longest=longest,
        shortest=shortest,
        ignore_eos=body.get("ignore_eos") is True,
        request_id=str(body.get("request_id") or ""),
    )


def _check_sampling(body: Body) -> None:
    temperature, top_p = _number(body, "temperature"), _number(body, "top_p")
    if temperature is not None and temperature < 0:
        shown = f"temperature must be non-negative, got {temperature}. "
        raise _bad(f"{shown}(parameter=temperature, value={temperature})", "temperature")
    if temperature is not None and temperature > 2:
        shown = f"temperature must be in [0, 2], got {temperature}. "
        raise _bad(f"{shown}(parameter=temperature, value={temperature})", "temperature")
    if top_p is not None and not 0 < top_p <= 1:
        raise _bad(f"top_p must be in (0, 1], got {top_p}. (parameter=top_p, value={top_p})", "top_p")
    logprobs = _integer(body, "top_logprobs") or 0
    if logprobs > MAX_LOGPROBS:
        text = f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {MAX_LOGPROBS} "
        raise _bad(f"{text}(parameter=logprobs, value={logprobs})", "logprobs")


def _limits(body: Body, chat: bool, prompt_tokens: int, max_model_len: int) -> tuple[int, int]:
    """(most, fewest) output tokens."""
    asked = _integer(body, "max_completion_tokens") if chat else None
    if asked is None:
        asked = _integer(body, "max_tokens")
    if asked is None and not chat:
        asked = 16  # the default of the completions route
    if asked is not None and asked < 1:
        raise _bad(
            f"max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})", "max_tokens"
        )
    if asked is not None and asked > max_model_len:
        text = f"max_tokens={asked} cannot be greater than max_model_len={max_model_len}. "
        tail = f"Please request fewer output tokens. (parameter=max_tokens, value={asked})"
        raise _bad(text + tail, "max_tokens")
    if prompt_tokens >= max_model_len:
        prompt_tokens = min(prompt_tokens, max_model_len + 1)  # vLLM stops counting there
        text = (
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"at least {prompt_tokens} input tokens, which exceeds this limit even without any output "
            f"tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={prompt_tokens})"
        )
        raise _bad(text, "input_tokens")
    shortest = _integer(body, "min_tokens") or 0
    if asked is not None and shortest > asked:
        raise _bad(f"min_tokens must be less than or equal to max_tokens={asked}, got {shortest}.", None)
    room = max_model_len - prompt_tokens
    return (room if asked is None else min(asked, room)), shortest


def _integer(body: Body, key: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        text = "Input should be a valid integer, unable to parse string as an integer"
        raise _invalid("int_parsing", key, text, value)
    return value


def _number(body: Body, key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid("float_parsing", key, "Input should be a valid number", value)
    return float(value)


def _bad(message: str, param: str | None) -> Rejection:
    return Rejection(400, "BadRequestError", message, param)


def _invalid(kind: str, key: str, text: str, value: object) -> Rejection:
    where = f"body.{key}" if key else "body"
    shown = value if isinstance(value, str | int | float) else _size(value)
    message = (
        f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {text!r}, 'input': {shown!r}}}"
    )
    return Rejection(400, "Bad Request", message, where)


def _size(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)
