"""Shell: TGI's answers: its own stream and body, and its OpenAI ones."""

import time
from dataclasses import dataclass

import orjson

from simulator.emulator_http import LAST_CHUNK, Exchange, chunk
from simulator.emulator_text import WORDS, output_text
from simulator.emulator_tgi_body import Refusal, TgiAsk

FINGERPRINT = "3.3.6-native"
DONE = chunk(b"data: [DONE]\n\n")
LOGPROB = -0.5
OPENAI_REASON = {"eos_token": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Ending:
    tokens: int
    reason: str  # eos_token or length

    @property
    def openai_reason(self) -> str:
        return OPENAI_REASON[self.reason]


class GenerateStream:
    """/generate_stream: one event a token; the last has the whole text. No [DONE]."""

    def __init__(self, exchange: Exchange, ask: TgiAsk, ending: Ending) -> None:
        self._exchange, self._ask, self._ending = exchange, ask, ending

    def token(self, count: int, last: bool) -> None:
        text, details = "null", "null"
        if last:
            text = f'"{output_text(self._ending.tokens)}"'
            if self._ask.details:
                details = (
                    f'{{"finish_reason":"{self._ending.reason}","generated_tokens":{count},'
                    f'"seed":null,"input_length":{self._ask.prompt_tokens}}}'
                )
        event = f'{{"index":{count},"token":{_token(count)},"generated_text":{text},"details":{details}}}'
        if last:
            self._exchange.finish(_data(event) + LAST_CHUNK)
        else:
            self._exchange.write(_data(event))


class OpenAIStream:
    """/v1/chat/completions and /v1/completions with stream: ids are empty, usage has a chunk of its own."""

    def __init__(self, exchange: Exchange, ask: TgiAsk, ending: Ending, chat: bool, created: int) -> None:
        self._exchange, self._ask, self._ending, self._chat = exchange, ask, ending, chat
        kind = "chat.completion.chunk" if chat else "text_completion"
        model = orjson.dumps(ask.model).decode()
        self._head = (
            f'{{"object":"{kind}","id":"","created":{created},"model":{model},'
            f'"system_fingerprint":"{FINGERPRINT}","choices":['
        )
        self._parts = [
            self._event(self._choice(word.decode(), "null" if chat else '""'), "null") for word in WORDS
        ]

    def token(self, count: int, last: bool) -> None:
        if not last:
            self._exchange.write(self._parts[(count - 1) % len(WORDS)])
            return
        word = WORDS[(count - 1) % len(WORDS)].decode()
        final = self._event(self._choice(word, f'"{self._ending.openai_reason}"'), "null")
        if self._ask.include_usage:
            final += self._event("", orjson.dumps(_usage(self._ask, self._ending)).decode())
        self._exchange.finish(final + DONE + LAST_CHUNK)

    def _choice(self, text: str, reason: str) -> str:
        delta = f'"delta":{{"role":"assistant","content":"{text}"}}'
        inner = delta if self._chat else f'"text":"{text}"'
        return f'{{"index":0,{inner},"logprobs":null,"finish_reason":{reason}}}'

    def _event(self, choice: str, usage: str) -> bytes:
        return _data(f'{self._head}{choice}],"usage":{usage}}}')


class Whole:
    """A body when the last token is out, with TGI's timing headers (milliseconds)."""

    def __init__(self, exchange: Exchange, body: bytes, ask: TgiAsk, ending: Ending) -> None:
        self._exchange, self._body, self._ask, self._ending = exchange, body, ask, ending
        self._started = time.monotonic()
        self._first = self._started

    def token(self, count: int, last: bool) -> None:
        if count == 1:
            self._first = time.monotonic()
        if last:
            self._exchange.respond(200, self._body, extra=self._headers(time.monotonic()))

    def _headers(self, now: float) -> tuple[tuple[bytes, bytes], ...]:
        total, tokens = 1e3 * (now - self._started), self._ending.tokens
        values = {
            b"x-compute-type": "1-emulated",
            b"x-compute-time": f"{total / 1e3:.3f}",
            b"x-compute-characters": str(len(self._ask.prompt)),
            b"x-total-time": f"{total:.0f}",
            b"x-validation-time": "0",
            b"x-queue-time": "0",
            b"x-inference-time": f"{total:.0f}",
            b"x-time-per-token": f"{total / tokens:.0f}",
            b"x-prompt-tokens": str(self._ask.prompt_tokens),
            b"x-generated-tokens": str(tokens),
        }
        return tuple((name, value.encode()) for name, value in values.items())


def generated_body(ask: TgiAsk, ending: Ending) -> bytes:
    """The answer of /generate."""
    text = output_text(ending.tokens)
    if not ask.details:
        return orjson.dumps({"generated_text": text})
    tokens = ",".join(_token(count) for count in range(1, ending.tokens + 1))
    return (
        f'{{"generated_text":"{text}","details":{{"finish_reason":"{ending.reason}",'
        f'"generated_tokens":{ending.tokens},"seed":null,"prefill":[],"tokens":[{tokens}]}}}}'
    ).encode()


def openai_body(ask: TgiAsk, ending: Ending, chat: bool, created: int) -> bytes:
    """The answer of /v1/chat/completions and /v1/completions."""
    text = output_text(ending.tokens)
    choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": ending.openai_reason}
    if chat:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return orjson.dumps(
        {
            "object": "chat.completion" if chat else "text_completion",
            "id": "",
            "created": created,
            "model": ask.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [choice],
            "usage": _usage(ask, ending),
        }
    )


def refused_stream(refusal: Refusal, openai: bool) -> bytes:
    """What a stream brings instead of tokens: TGI has sent status 200 by then."""
    if openai:
        error = {"error": {"message": refusal.message, "http_status_code": 422}}
        return _data(orjson.dumps(error).decode()) + DONE + LAST_CHUNK
    return _data(refusal.body().decode()) + LAST_CHUNK


def _data(event: str) -> bytes:
    return chunk(f"data: {event}\n\n".encode())


def _token(count: int) -> str:
    index = (count - 1) % len(WORDS)
    return f'{{"id":{index},"text":"{WORDS[index].decode()}","logprob":{LOGPROB},"special":false}}'


def _usage(ask: TgiAsk, ending: Ending) -> dict[str, int]:
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": ending.tokens,
        "total_tokens": ask.prompt_tokens + ending.tokens,
    }
