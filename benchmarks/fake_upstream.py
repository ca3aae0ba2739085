"""Shell: an engine that costs next to nothing: fixed answers in vLLM's shapes on several ports.

It keeps what a proxy must not lose: one SSE event a token, `usage` when it is asked for, the metrics page and
the health route that a router polls.
"""

import argparse
import asyncio
import json
from typing import cast

import httptools
import uvloop

MODEL = "bench-model"
PROMPT_TOKENS = 256
JSON_TOKENS = 16
METRICS = "\n".join(
    f'vllm:{name}{{engine="0",model_name="{MODEL}"}} {value}'
    for name, value in [
        ("num_requests_running", "0.0"),
        ("num_requests_waiting", "0.0"),
        ("kv_cache_usage_perc", "0.0"),
        ("num_preemptions_total", "0.0"),
        ("prompt_tokens_total", "0.0"),
        ("generation_tokens_total", "0.0"),
    ]
)


def head(content_type: str, length: int | None) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        "HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        f"{framing}\r\ncontent-type: {content_type}\r\nvary: Origin\r\n\r\n"
    ).encode()


def answer(content_type: str, body: bytes) -> bytes:
    return head(content_type, len(body)) + body


def usage(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def chat_completion() -> bytes:
    message: dict[str, object] = {
        "role": "assistant",
        "content": " word" * JSON_TOKENS,
        "refusal": None,
        "tool_calls": [],
    }
    return json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": usage(JSON_TOKENS),
        }
    ).encode()


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    return framed({**chunk_fields(), "choices": [choice]})


def chunk_fields() -> dict[str, object]:
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": MODEL,
    }


def framed(value: object) -> bytes:
    return http_chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


def http_chunk(payload: bytes) -> bytes:
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


class Answers:
    """Every byte this engine will ever send."""

    def __init__(self, chunks: int) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 32768}]}
        self.pages = {
            b"/health": answer("text/plain", b""),
            b"/metrics": answer("text/plain; version=1.0.0; charset=utf-8", METRICS.encode() + b"\n"),
            b"/v1/models": answer("application/json", json.dumps(models).encode()),
            b"/version": answer("application/json", b'{"version":"0.32.0"}'),
        }
        self.completion = answer("application/json", chat_completion())
        self.missing = answer("application/json", b'{"detail":"Not Found"}').replace(
            b"200 OK", b"404 Not Found"
        )
        self.chunks = chunks
        self.stream_head = head("text/event-stream; charset=utf-8", None)
        self.role = event({"role": "assistant", "content": ""})
        self.token = event({"content": " word"})
        self.finish = event({"content": " word"}, "length")
        self.usage = framed({**chunk_fields(), "choices": [], "usage": usage(chunks)})
        self.done = http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection: requests one after the other, each answered whole or as a paced stream."""

    def __init__(self, answers: Answers, gap_s: float) -> None:
        self.answers = answers
        self.gap_s = gap_s
        self.loop = asyncio.get_running_loop()
        self.path = b""
        self.body: list[bytes] = []
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one only by its methods
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = []

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        if self.path != b"/v1/chat/completions":
            self.transport.write(self.answers.pages.get(self.path, self.answers.missing))
            return
        body = b"".join(self.body).replace(b" ", b"")
        if b'"stream":true' not in body:
            self.transport.write(self.answers.completion)
            return
        self.wants_usage = b'"include_usage":true' in body
        self.sent = 1
        self.next_at = self.loop.time()
        self.transport.write(self.answers.stream_head + self.answers.role)
        self.wait()

    def wait(self) -> None:
        self.next_at += self.gap_s
        self.timer = self.loop.call_at(self.next_at, self.send_token)

    def send_token(self) -> None:
        """One event a gap; the stream keeps its own absolute time, so a late one does not shift the rest."""
        self.sent += 1
        if self.sent < self.answers.chunks:
            self.transport.write(self.answers.token)
            self.wait()
            return
        usage_event = self.answers.usage if self.wants_usage else b""
        self.transport.write(self.answers.finish + usage_event + self.answers.done)


async def serve(ports: list[int], chunks: int, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    answers = Answers(chunks)
    servers = [
        await loop.create_server(lambda: Engine(answers, gap_s), "127.0.0.1", port, backlog=2048)
        for port in ports
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", required=True, help="comma-separated")
    parser.add_argument("--chunks", type=int, default=100, help="SSE events of a stream")
    parser.add_argument("--gap-ms", type=float, default=10.0, help="between two events of a stream")
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    uvloop.run(serve([int(port) for port in options.ports.split(",")], options.chunks, options.gap_ms / 1e3))
