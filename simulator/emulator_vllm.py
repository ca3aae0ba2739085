"""Shell: an emulated engine over HTTP as vLLM 0.32: routes, errors, streams and metrics.

Not emulated: tools, logprobs, stop strings, prefix caching, /v1/responses and the other generation routes.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from simulator.emulator_http import Exchange, Request
from simulator.emulator_instance import LiveEngine, LiveJob
from simulator.emulator_metrics import VllmState, vllm_page
from simulator.emulator_text import TRUE_OUTPUT_TOKENS, OutputLengths
from simulator.emulator_vllm_body import (
    Ask,
    Rejection,
    parse_chat,
    parse_completion,
    parse_tokenize,
    rejection_body,
)
from simulator.emulator_vllm_reply import Identity, Length, Reply, Streamed, Whole

TEXT = b"text/plain; version=1.0.0; charset=utf-8"
VERSION = "0.32.0"
BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)


@dataclass(frozen=True, slots=True)
class VllmSettings:
    model: str
    max_model_len: int
    max_queued: int | None
    dev_mode: bool


class VllmApp:
    """Answers one port."""

    def __init__(
        self,
        engine: LiveEngine,
        settings: VllmSettings,
        lengths: OutputLengths,
        stats: Callable[[], bytes],
        ids: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._lengths = lengths
        self._ids = ids
        self._permission = {
            "id": f"modelperm-{ids()}",
            "object": "model_permission",
            "created": int(time.time()),
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        self._finished = {"stop": 0, "length": 0}
        self._routes: dict[str, dict[str, Callable[[Request, Exchange], None]]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._completions},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/health": {"GET": _empty},
            "/ping": {"GET": _empty, "POST": _empty},
            "/version": {"GET": lambda _, exchange: _json(exchange, {"version": VERSION})},
            "/load": {"GET": lambda _, exchange: _json(exchange, {"server_load": 0})},
            "/metrics": {"GET": self._metrics},
            "/emulator/stats": {"GET": lambda _, exchange: exchange.respond(200, stats())},
        }
        if settings.dev_mode:
            self._routes["/sleep"] = {"POST": self._sleep}
            self._routes["/wake_up"] = {"POST": self._wake}
            self._routes["/emulator/slowdown"] = {"POST": self._slow_down}
            self._routes["/is_sleeping"] = {
                "GET": lambda _, exchange: _json(exchange, {"is_sleeping": engine.asleep})
            }

    def handle(self, request: Request, exchange: Exchange) -> None:
        methods = self._routes.get(request.path)
        if methods is None:
            exchange.respond(404, b'{"detail":"Not Found"}')
            return
        answer = methods.get(request.method)
        if answer is None:
            exchange.respond(405, b'{"detail":"Method Not Allowed"}')
            return
        try:
            answer(request, exchange)
        except Rejection as rejection:
            exchange.respond(rejection.status, rejection_body(rejection))

    # -- generation

    def _chat(self, request: Request, exchange: Exchange) -> None:
        settings = self._settings
        ask = parse_chat(_content_type(request), request.body, settings.model, settings.max_model_len)
        self._generate(ask, request, exchange)

    def _completions(self, request: Request, exchange: Exchange) -> None:
        settings = self._settings
        ask = parse_completion(_content_type(request), request.body, settings.model, settings.max_model_len)
        self._generate(ask, request, exchange)

    def _generate(self, ask: Ask, request: Request, exchange: Exchange) -> None:
        if self._engine.queue_is_full(self._settings.max_queued):
            self._engine.counters.rejected += 1
            raise Rejection(503, "Service Unavailable", BUSY)
        name = ask.request_id or request.headers.get(b"x-request-id", b"").decode("latin-1") or self._ids()
        kind = "chatcmpl" if ask.chat else "cmpl"
        identity = Identity(_plain(f"{kind}-{name}"), self._settings.model, int(time.time()))
        lengths = self._output_lengths(ask, request)
        answer = Streamed if ask.stream else Whole
        reply: Reply = answer(exchange, ask, lengths, identity, self._count)
        if ask.stream:
            exchange.start_stream(b"text/event-stream; charset=utf-8")
        jobs = [
            self._engine.submit(ask.prompts[index // ask.n].tokens, length.tokens, reply.choice(index))
            for index, length in enumerate(lengths)
        ]
        exchange.on_disconnect = lambda: self._abort(jobs)

    def _output_lengths(self, ask: Ask, request: Request) -> list[Length]:
        """The true length if the header says one, else a draw; both within what was asked for."""
        header = request.headers.get(TRUE_OUTPUT_TOKENS, b"")
        true = int(header) if header.isdigit() else None
        lengths = []
        for index in range(len(ask.prompts) * ask.n):
            wanted = true or self._lengths.draw(ask.prompts[index // ask.n].text, index % ask.n)
            if ask.ignore_eos:
                wanted = ask.longest
            wanted = max(wanted, ask.shortest, 1)
            lengths.append(Length(min(wanted, ask.longest), "stop" if wanted < ask.longest else "length"))
        return lengths

    def _count(self, reason: str) -> None:
        self._finished[reason] += 1

    def _abort(self, jobs: list[LiveJob]) -> None:
        for job in jobs:
            self._engine.cancel(job)

    # -- the rest

    def _models(self, request: Request, exchange: Exchange) -> None:
        model = {
            "id": self._settings.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": self._settings.model,
            "parent": None,
            "max_model_len": self._settings.max_model_len,
            "permission": [self._permission],
        }
        _json(exchange, {"object": "list", "data": [model]})

    def _tokenize(self, request: Request, exchange: Exchange) -> None:
        count = parse_tokenize(_content_type(request), request.body, self._settings.model)
        tokens = list(range(count))
        longest = self._settings.max_model_len
        _json(exchange, {"count": count, "max_model_len": longest, "tokens": tokens, "token_strs": None})

    def _sleep(self, request: Request, exchange: Exchange) -> None:
        self._engine.sleep()
        level = 2 if "level=2" in request.query else 1
        _after(self._engine.profile.actuation.sleep_s, exchange, {"status": "sleeping", "level": level})

    def _wake(self, request: Request, exchange: Exchange) -> None:
        seconds = self._engine.profile.actuation.wake_s
        asyncio.get_running_loop().call_later(seconds, self._engine.wake)
        _after(seconds, exchange, {"status": "awake", "tags": None})

    def _slow_down(self, request: Request, exchange: Exchange) -> None:
        """Not vLLM's: from now on every iteration takes `ratio` times as long as the profile says."""
        try:
            ratio = float(request.query.removeprefix("ratio="))
        except ValueError:
            ratio = 0.0
        if not 0.1 <= ratio <= 1e5:
            exchange.respond(400, b'{"detail":"ratio: from 0.1 to 100000"}')
            return
        self._engine.slowdown = ratio
        _json(exchange, {"ratio": ratio})

    def _metrics(self, request: Request, exchange: Exchange) -> None:
        engine, counters = self._engine, self._engine.counters
        limits = engine.profile.engine
        state = VllmState(
            model=self._settings.model,
            running=engine.running,
            waiting=engine.waiting,
            kv_usage_ratio=min(1.0, engine.kv_tokens / limits.kv_capacity_tokens),
            asleep=engine.asleep,
            block_size=limits.block_size,
            kv_capacity_tokens=limits.kv_capacity_tokens,
            preemptions=counters.preemptions,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.output_tokens,
            finished=[*self._finished.items(), ("abort", 0), ("error", 0)],
            rejected=counters.rejected,
            histograms=[
                ("vllm:time_to_first_token_seconds", "Time to first token.", counters.ttft),
                ("vllm:inter_token_latency_seconds", "Inter-token latency.", counters.itl),
                ("vllm:request_time_per_output_token_seconds", "Time per output token.", counters.tpot),
                ("vllm:e2e_request_latency_seconds", "End-to-end latency.", counters.e2e),
                ("vllm:request_queue_time_seconds", "Time in WAITING.", counters.queued),
                ("vllm:request_prefill_time_seconds", "Time in PREFILL.", counters.prefill),
                ("vllm:request_decode_time_seconds", "Time in DECODE.", counters.decode),
                ("vllm:request_prompt_tokens", "Prefill tokens per request.", counters.prompt_length),
                ("vllm:request_generation_tokens", "Generation tokens.", counters.output_length),
            ],
        )
        exchange.respond(200, vllm_page(state), TEXT)


def _content_type(request: Request) -> bytes:
    return request.headers.get(b"content-type", b"")


def _plain(name: str) -> str:
    """A caller's id as it may stand between quotes in JSON."""
    return "".join(c for c in name if c.isalnum() or c in "-_.:")


def _empty(request: Request, exchange: Exchange) -> None:
    exchange.respond(200, b"")


def _json(exchange: Exchange, value: object) -> None:
    exchange.respond(200, orjson.dumps(value))


def _after(seconds: float, exchange: Exchange, value: object) -> None:
    asyncio.get_running_loop().call_later(seconds, _json, exchange, value)
