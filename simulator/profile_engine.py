"""Shell: exact loads on one live engine: so many sequences, so long, and when each token came.

Prompts are lists of token ids, all different, so that no prefix cache answers; min_tokens, max_tokens and
ignore_eos fix the output. What is timed is what a client sees.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from statistics import median

import orjson

from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.loadgen_http import Pool

FIRST_ID, LAST_ID = 5, 250  # ordinary tokens of any tokenizer
STALLED = 120.0  # s without a token
NEARLY = 0.9  # of the output: the energy window closes before the first sequence can end
LEAST_EVENTS = 8


@dataclass(frozen=True, slots=True)
class Window:
    """One measured point. `flag` says why it is not to be used; empty: it is."""

    seconds: Seconds  # one iteration
    flag: str = ""
    busy: Seconds | None = None  # that the engine worked, where it stood still in between; None: all the time


@dataclass(slots=True, eq=False)
class Stream:
    """One request's answer as it comes; `moved` is set with every event and at the end."""

    moved: asyncio.Event
    code: int = 0
    error: str = ""
    ended_at: float = 0.0
    times: list[float] = field(default_factory=list)  # of each event that carried a token
    tokens: int = 0  # from usage
    rest: bytes = b""

    @property
    def over(self) -> bool:
        return self.ended_at > 0.0

    def status(self, code: int) -> None:
        self.code = code

    def body(self, part: bytes, now: float) -> None:
        *events, self.rest = (self.rest + part).split(b"\n\n")
        for event in events:
            if b'"text":' in event:
                self.times.append(now)
            elif b'"completion_tokens":' in event:
                self.tokens = _completion_tokens(event)
        self.moved.set()

    def ended(self, now: float, error: str) -> None:
        self.ended_at, self.error = now, error
        self.moved.set()


class LiveEngine:
    """One vLLM-like server: /v1/completions with token ids."""

    def __init__(self, url: str, model: str, api_key: str | None, rng: Random) -> None:
        self.model = model
        self._pool = Pool(url)
        self._rng = rng
        self._key = f"authorization: Bearer {api_key}\r\n" if api_key else ""

    def close(self) -> None:
        self._pool.close()

    async def decode(
        self,
        batch: int,
        prompt: int,
        output: int,
        opened: Callable[[], Awaitable[None]],
        closed: Callable[[], Awaitable[None]],
    ) -> Window:
        """Iteration time while `batch` sequences decode side by side.

        `opened` is awaited once all of them do, `closed` before the first can end.
        """
        moved = asyncio.Event()
        streams = [await self._send(prompt, output, moved) for _ in range(batch)]
        await self._until(
            streams, moved, lambda: all(s.times for s in streams) or any(s.over for s in streams)
        )
        start = time.monotonic()
        await opened()
        near = NEARLY * output
        await self._until(streams, moved, lambda: any(len(s.times) >= near or s.over for s in streams))
        stop = time.monotonic()
        await closed()
        await self._until(streams, moved, lambda: all(s.over for s in streams))
        if start >= min(s.times[-1] for s in streams):
            return Window(Seconds(0.0), "batch_not_reached")
        return _window(streams, start, stop, output)

    async def prefill(self, prompt: int, window: Seconds) -> Window:
        """Median time to the first token of lone prompts, sent in turn for `window`; three at least."""
        spent: list[float] = []
        started = time.monotonic()
        while len(spent) < 3 or time.monotonic() - started < window:
            spent.append(await self._first_token(prompt))
        return Window(Seconds(median(spent)), busy=Seconds(sum(spent)))

    async def _first_token(self, prompt: int) -> float:
        moved = asyncio.Event()
        before = time.monotonic()
        stream = await self._send(prompt, 1, moved)
        await self._until([stream], moved, lambda: stream.over)
        return stream.times[0] - before

    async def _send(self, prompt: int, output: int, moved: asyncio.Event) -> Stream:
        body = orjson.dumps(
            {
                "model": self.model,
                "prompt": [self._rng.randint(FIRST_ID, LAST_ID) for _ in range(prompt)],
                "min_tokens": output,
                "max_tokens": output,
                "ignore_eos": True,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._pool.authority}\r\n{self._key}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        stream = Stream(moved)
        await self._pool.send(head.encode() + body, stream)
        return stream

    async def _until(self, streams: list[Stream], moved: asyncio.Event, reached: Callable[[], bool]) -> None:
        while not reached():
            moved.clear()
            try:
                await asyncio.wait_for(moved.wait(), STALLED)
            except TimeoutError as error:
                raise UserError(f"the engine sent nothing for {STALLED:.0f} s", "its log says why") from error
            for stream in streams:
                _complain(stream)
        for stream in streams:
            _complain(stream)


def _window(streams: list[Stream], start: float, stop: float, output: int) -> Window:
    """Time between tokens inside the window; an event may carry several of them."""
    gaps = []
    for stream in streams:
        inside = [at for at in stream.times if start <= at <= stop]
        if len(inside) < LEAST_EVENTS:
            return Window(Seconds(0.0), "short_window")
        tokens_per_event = (stream.tokens or output) / len(stream.times)
        gaps.append(_pace(inside) / tokens_per_event)
    if median(gaps) <= 0.0:
        return Window(Seconds(0.0), "bunched")  # this host stood still, and read everything at once
    return Window(Seconds(median(gaps)))


def _pace(times: list[float]) -> float:
    """Seconds between events: the median over pairs half a window apart; one late event is one vote."""
    half = len(times) // 2
    return median(later - sooner for sooner, later in zip(times, times[half:], strict=False)) / half


def _complain(stream: Stream) -> None:
    if stream.error:
        raise UserError(f"the engine broke off: {stream.error}", "its log says why")
    if stream.code not in {0, 200}:
        if not stream.over:
            return  # the body says why, and is still to come
        text = stream.rest[:300].decode(errors="replace")
        raise UserError(f"the engine refused a request ({stream.code}): {text}", "fewer or shorter loads?")
    if stream.over and not stream.times:
        raise UserError(
            "the engine answered without a token", "it must stream /v1/completions with token ids"
        )


def _completion_tokens(event: bytes) -> int:
    document = orjson.loads(event.partition(b"data: ")[2])
    return int(document["usage"]["completion_tokens"])
