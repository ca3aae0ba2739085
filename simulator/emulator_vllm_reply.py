"""Shell: vLLM's answers: an SSE stream written token by token, or one JSON body at the end.

A token of a stream is one write of prepared bytes; every output word has the same length, so the few chunks
that a stream repeats are made once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from simulator.emulator_http import LAST_CHUNK, Exchange, chunk
from simulator.emulator_instance import Sink
from simulator.emulator_text import CHARACTERS_PER_TOKEN, WORDS, output_text
from simulator.emulator_vllm_body import Ask

FINGERPRINT = "vllm-0.32.0-881aba29"
DONE = chunk(b"data: [DONE]\n\n")
CYCLE = len(WORDS)


@dataclass(frozen=True, slots=True)
class Length:
    """How long one choice will be, and why it ends there."""

    tokens: int
    reason: str  # stop or length


@dataclass(frozen=True, slots=True)
class Identity:
    """What every chunk of an answer repeats."""

    id: str
    model: str
    created: int


class Reply(Protocol):
    def choice(self, index: int) -> Sink: ...


class Streamed:
    """SSE. Each choice is a sink of its own; the last one to end closes the stream."""

    def __init__(
        self,
        exchange: Exchange,
        ask: Ask,
        lengths: Sequence[Length],
        identity: Identity,
        finished: Callable[[str], None],
    ) -> None:
        self.ask = ask
        self.exchange = exchange
        self.lengths = lengths
        self.identity = identity
        self._finished = finished
        self._left = len(lengths)
        self._roles_sent = not ask.chat

    def choice(self, index: int) -> Sink:
        return StreamedChoice(self, index, self.lengths[index])

    def event(self, choices: str, tail: str = "") -> bytes:
        """One chunk: `choices` is JSON, `tail` more members."""
        kind = "chat.completion.chunk" if self.ask.chat else "text_completion"
        head = f'{{"id":"{self.identity.id}","object":"{kind}","created":{self.identity.created}'
        return chunk(
            f'data: {head},"model":"{self.identity.model}","choices":[{choices}]{tail}}}\n\n'.encode()
        )

    def roles(self) -> bytes:
        """The first chunks of a chat, once."""
        if self._roles_sent:
            return b""
        self._roles_sent = True
        usage = self.usage(0, 0) if self.ask.continuous_usage else ""
        delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        tail = f'{usage},"prompt_token_ids":null,"prompt_text":null'
        return b"".join(
            self.event(f'{{"index":{index},{delta}}}', tail) for index in range(len(self.lengths))
        )

    def usage(self, index: int, completion: int) -> str:
        prompt = self.ask.prompts[index // self.ask.n].tokens
        details = ',"completion_tokens_details":null' if self.ask.chat else ""
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
            f'"completion_tokens":{completion}{details}}}'
        )

    def end(self, last: bytes, reason: str) -> None:
        """A choice has written its last chunk: `last`."""
        self._finished(reason)
        self._left -= 1
        if self._left:
            self.exchange.write(last)
            return
        if self.ask.include_usage:
            prompt = sum(prompt.tokens for prompt in self.ask.prompts)
            completion = sum(length.tokens for length in self.lengths)
            usage = (
                f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + completion},'
                f'"completion_tokens":{completion}}}'
            )
            last += self.event("", f'{usage},"system_fingerprint":"{FINGERPRINT}"')
        self.exchange.finish(last + DONE + LAST_CHUNK)

    @property
    def fingerprint(self) -> str:
        """On the last chunk with content, unless a usage chunk follows."""
        return "" if self.ask.include_usage else f',"system_fingerprint":"{FINGERPRINT}"'


class StreamedChoice:
    __slots__ = ("_end", "_index", "_parts", "_stream", "_write")

    def __init__(self, stream: Streamed, index: int, length: Length) -> None:
        self._stream, self._index, self._end = stream, index, length
        self._write = stream.exchange.write
        marker = "#" * CHARACTERS_PER_TOKEN
        head, _, tail = stream.event(self._content(marker, "null", False)).partition(marker.encode())
        self._parts = [head + word + tail for word in WORDS]

    def token(self, count: int, last: bool) -> None:
        if last:
            self._last(count)
        elif self._stream.ask.continuous_usage:
            usage = self._stream.usage(self._index, count)
            self._write(
                self._roles(count) + self._stream.event(self._content(_word(count), "null", False), usage)
            )
        elif count == 1:
            self._write(self._stream.roles() + self._parts[0])
        else:
            self._write(self._parts[(count - 1) % CYCLE])

    def _roles(self, count: int) -> bytes:
        return self._stream.roles() if count == 1 else b""

    def _last(self, count: int) -> None:
        stream, reason = self._stream, f'"{self._end.reason}"'
        usage = stream.usage(self._index, count) if stream.ask.continuous_usage else ""
        final = stream.event(self._content(_word(count), reason, True), usage + stream.fingerprint)
        stream.end(self._roles(count) + final, self._end.reason)

    def _content(self, text: str, reason: str, last: bool) -> str:
        if self._stream.ask.chat:
            stop = '"stop_reason":null,' if last else ""
            return (
                f'{{"index":{self._index},"delta":{{"content":"{text}"}},"logprobs":null,'
                f'"finish_reason":{reason},{stop}"token_ids":null}}'
            )
        return (
            f'{{"index":{self._index},"text":"{text}","logprobs":null,"finish_reason":{reason},'
            f'"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}'
        )


def _word(count: int) -> str:
    return WORDS[(count - 1) % CYCLE].decode()


class Whole:
    """One JSON body when the last choice has ended."""

    def __init__(
        self,
        exchange: Exchange,
        ask: Ask,
        lengths: Sequence[Length],
        identity: Identity,
        finished: Callable[[str], None],
    ) -> None:
        self._exchange, self._ask, self._lengths = exchange, ask, lengths
        self._identity, self._finished = identity, finished
        self._left = len(lengths)

    def choice(self, index: int) -> Sink:
        return WholeChoice(self, self._lengths[index].reason)

    def end(self, reason: str) -> None:
        self._finished(reason)
        self._left -= 1
        if not self._left:
            self._exchange.respond(200, orjson.dumps(self._body()))

    def _body(self) -> dict[str, object]:
        prompt = sum(prompt.tokens for prompt in self._ask.prompts)
        completion = sum(length.tokens for length in self._lengths)
        body: dict[str, object] = {
            "id": self._identity.id,
            "object": "chat.completion" if self._ask.chat else "text_completion",
            "created": self._identity.created,
            "model": self._identity.model,
            "choices": [self._choice(index, length) for index, length in enumerate(self._lengths)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {
                "prompt_tokens": prompt,
                "total_tokens": prompt + completion,
                "completion_tokens": completion,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        }
        if self._ask.chat:
            body |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return body | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def _choice(self, index: int, length: Length) -> dict[str, object]:
        text = output_text(length.tokens)
        end = {"logprobs": None, "finish_reason": length.reason, "stop_reason": None, "token_ids": None}
        if not self._ask.chat:
            more = {"prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}
            return {"index": index, "text": text, **end, **more}
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {"index": index, "message": message, **end, "routed_experts": None}


class WholeChoice:
    __slots__ = ("_reason", "_whole")

    def __init__(self, whole: Whole, reason: str) -> None:
        self._whole, self._reason = whole, reason

    def token(self, count: int, last: bool) -> None:
        if last:
            self._whole.end(self._reason)
