"""Shell: an emulated engine over HTTP as TGI 3.3: its own routes and its OpenAI ones.

A double, after TGI's published openapi.json and snapshots: no TGI server was at hand to record.
Not emulated: best_of, top tokens, grammars, tools, watermarks, stop sequences, adapters.
"""

import time
from collections.abc import Callable

import orjson

from simulator.emulator_http import JSON, Exchange, Request
from simulator.emulator_instance import LiveEngine, Sink
from simulator.emulator_metrics import TgiState, tgi_page
from simulator.emulator_text import TRUE_OUTPUT_TOKENS, OutputLengths
from simulator.emulator_tgi_body import Refusal, TgiAsk, parse_generate, parse_openai
from simulator.emulator_tgi_reply import (
    Ending,
    GenerateStream,
    OpenAIStream,
    Whole,
    generated_body,
    openai_body,
    refused_stream,
)

TEXT = b"text/plain; charset=utf-8"
STREAM = b"text/event-stream"
VERSION = "3.3.6"
NO_CACHE = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class TgiApp:
    """Answers one port. `max_total` bounds prompt and output together, in tokens."""

    def __init__(
        self,
        engine: LiveEngine,
        model: str,
        max_total: int,
        max_concurrent: int,
        lengths: OutputLengths,
        stats: Callable[[], bytes],
    ) -> None:
        self._engine = engine
        self._model, self._max_total, self._max_concurrent = model, max_total, max_concurrent
        self._lengths = lengths
        self._routes: dict[tuple[str, str], Callable[[Request, Exchange], None]] = {
            ("POST", "/"): self._compatible,
            ("POST", "/generate"): self._generate,
            ("POST", "/generate_stream"): self._generate_stream,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
            ("GET", "/"): self._health,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/info"): self._info,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/emulator/stats"): lambda _, exchange: exchange.respond(200, stats()),
        }

    def handle(self, request: Request, exchange: Exchange) -> None:
        answer = self._routes.get((request.method, request.path))
        if answer is None:
            known = any(path == request.path for _, path in self._routes)
            exchange.respond(405 if known else 404, b"")
            return
        try:
            answer(request, exchange)
        except Refusal as refusal:
            exchange.respond(refusal.status, refusal.body(), JSON if refusal.kind else TEXT)

    # -- generation

    def _compatible(self, request: Request, exchange: Exchange) -> None:
        ask = parse_generate(_content_type(request), request.body, self._max_total)
        if ask.stream:
            self._generate_stream(request, exchange)
        else:
            self._generate(request, exchange)

    def _generate(self, request: Request, exchange: Exchange) -> None:
        ask = parse_generate(_content_type(request), request.body, self._max_total)
        ending = self._ending(ask, request)
        body = generated_body(ask, ending)
        self._run(ask, ending, Whole(exchange, body, ask, ending), exchange)

    def _generate_stream(self, request: Request, exchange: Exchange) -> None:
        try:
            ask = parse_generate(_content_type(request), request.body, self._max_total)
            ending = self._ending(ask, request)
        except Refusal as refusal:
            _refuse_stream(refusal, exchange, openai=False)
            return
        exchange.start_stream(STREAM, NO_CACHE)
        self._run(ask, ending, GenerateStream(exchange, ask, ending), exchange)

    def _chat(self, request: Request, exchange: Exchange) -> None:
        self._openai(request, exchange, chat=True)

    def _completions(self, request: Request, exchange: Exchange) -> None:
        self._openai(request, exchange, chat=False)

    def _openai(self, request: Request, exchange: Exchange, chat: bool) -> None:
        ask = parse_openai(_content_type(request), request.body, chat, self._model, self._max_total)
        created = int(time.time())
        if not ask.stream:
            ending = self._ending(ask, request)
            body = openai_body(ask, ending, chat, created)
            self._run(ask, ending, Whole(exchange, body, ask, ending), exchange)
            return
        try:
            ending = self._ending(ask, request)
        except Refusal as refusal:
            _refuse_stream(refusal, exchange, openai=True)
            return
        exchange.start_stream(STREAM, NO_CACHE)
        self._run(ask, ending, OpenAIStream(exchange, ask, ending, chat, created), exchange)

    def _ending(self, ask: TgiAsk, request: Request) -> Ending:
        """How many tokens it gets and why it ends. Raises Refusal when too many are here."""
        engine = self._engine
        if engine.running + engine.waiting >= self._max_concurrent:
            engine.counters.rejected += 1
            raise Refusal(429, "overloaded", "Model is overloaded")
        header = request.headers.get(TRUE_OUTPUT_TOKENS, b"")
        wanted = int(header) if header.isdigit() else self._lengths.draw(ask.prompt, 0)
        tokens = max(1, min(wanted, ask.longest))
        return Ending(tokens, "eos_token" if wanted < ask.longest else "length")

    def _run(self, ask: TgiAsk, ending: Ending, sink: Sink, exchange: Exchange) -> None:
        job = self._engine.submit(max(1, ask.prompt_tokens), ending.tokens, sink)
        exchange.on_disconnect = lambda: self._engine.cancel(job)

    # -- the rest

    def _health(self, request: Request, exchange: Exchange) -> None:
        exchange.respond(200, b"")

    def _info(self, request: Request, exchange: Exchange) -> None:
        info = {
            "model_id": self._model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self._max_concurrent,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": self._max_total - 1,
            "max_total_tokens": self._max_total,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
        exchange.respond(200, orjson.dumps(info))

    def _models(self, request: Request, exchange: Exchange) -> None:
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": self._model}
        exchange.respond(200, orjson.dumps({"object": "list", "data": [model]}))

    def _metrics(self, request: Request, exchange: Exchange) -> None:
        engine, counters = self._engine, self._engine.counters
        state = TgiState(
            running=engine.running,
            waiting=engine.waiting,
            held_tokens=engine.kv_tokens,
            capacity_tokens=engine.profile.engine.kv_capacity_tokens,
            requests=counters.requests + counters.aborted + counters.rejected,
            succeeded=counters.requests,
            overloaded=counters.rejected,
            dropped=counters.aborted,
            histograms=[
                ("tgi_request_duration", "End-to-end, seconds.", counters.e2e),
                ("tgi_request_queue_duration", "In the queue, seconds.", counters.queued),
                ("tgi_request_mean_time_per_token_duration", "Per token, seconds.", counters.tpot),
                ("tgi_request_input_length", "Input tokens.", counters.prompt_length),
                ("tgi_request_generated_tokens", "Output tokens.", counters.output_length),
            ],
        )
        exchange.respond(200, tgi_page(state), TEXT)


def _refuse_stream(refusal: Refusal, exchange: Exchange, openai: bool) -> None:
    """Errors of TGI itself come inside the stream; its web framework's come before it."""
    if not refusal.kind:
        raise refusal
    exchange.start_stream(STREAM, NO_CACHE)
    exchange.finish(refused_stream(refusal, openai))


def _content_type(request: Request) -> bytes:
    return request.headers.get(b"content-type", b"")
