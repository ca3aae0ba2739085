"""Shell: a load generator on bare protocols, so that it is not what limits a run. Prints one JSON object.

closed   N connections, each sends its next request when the last is answered
paced    Poisson arrivals at a rate over N connections; latency counts from when a request was due
stream   N connections, each reads one SSE stream after the other and counts its events
cancel   N at a time, each opens a connection, asks for a stream and leaves at its first byte
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import cast

import httptools
import uvloop

from benchmarks.fake_upstream import MODEL

PROMPTS = 256  # different ones, so that no proxy lives off having seen a body before


@dataclass(slots=True)
class Tally:
    """What came back. Latencies in seconds; only counted requests have one."""

    requests: int = 0
    errors: int = 0
    events: int = 0
    bytes: int = 0
    latencies: list[float] = field(default_factory=list)
    first_error: str = ""

    def fail(self, why: str) -> None:
        self.errors += 1
        self.first_error = self.first_error or why


class Client(asyncio.Protocol):
    """One connection that sends one request after the other; `on_done` decides when."""

    def __init__(
        self,
        requests: Iterator[bytes],
        tally: Tally,
        on_done: Callable[["Client"], None],
        events: int,
        rebuilt: bool,
    ) -> None:
        self.requests = requests
        self.tally = tally
        self.on_done = on_done
        self.events = events  # that a whole stream has; 0: not a stream
        self.rebuilt = rebuilt  # the proxy makes its own events: more than the engine's is no error
        self.body: list[bytes] = []
        self.due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one only by its methods
        self.parser = httptools.HttpResponseParser(self)

    def start(self) -> None:
        self.send(perf_counter())

    def send(self, due: float) -> None:
        self.due = due
        self.busy = True
        self.body = []
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.tally.bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.tally.fail(f"unreadable answer: {error}")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self.tally.fail(f"connection lost: {exc}")
            self.on_done(self)

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.busy = False
        self.tally.requests += 1
        self.tally.latencies.append(perf_counter() - self.due)
        body = b"".join(self.body)
        status = self.parser.get_status_code()
        if status != 200:
            self.tally.fail(f"status {status}: {body[:200]!r}")
        elif self.events:
            self.count_events(body)
        elif not body.endswith(b"}"):
            self.tally.fail(f"not a whole body: {body[-50:]!r}")
        self.on_done(self)

    def count_events(self, body: bytes) -> None:
        """Exactly the events of the engine, and the end; an injected usage event must be gone again."""
        events = body.count(b"data: {")
        self.tally.events += events
        added = events > self.events and not self.rebuilt
        if events < self.events or added or not body.endswith(b"data: [DONE]\n\n"):
            self.tally.fail(f"{events} events of {self.events}, ends {body[-40:]!r}")


class Leaver(asyncio.Protocol):
    """Asks for a stream and is gone once it starts."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self.request = request
        self.tally = tally
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200"):
            self.tally.fail(f"answer {data[:200]!r}")
        self.tally.requests += 1
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


def requests(options: argparse.Namespace) -> Iterator[bytes]:
    """Chat completions whose prompts have `--prompt-bytes` characters and begin differently, in turn."""
    return itertools.cycle([request_bytes(options, number) for number in range(PROMPTS)])


def request_bytes(options: argparse.Namespace, number: int) -> bytes:
    text = f"Question {number}. " + "Explain what a pipeline stall is. " * (options.prompt_bytes // 34 + 1)
    user = {"role": "user", "content": text[: options.prompt_bytes]}
    messages = [{"role": "system", "content": "You are brief."}, user]
    body = {"model": MODEL, "messages": messages, "max_tokens": 256, "temperature": 0.7}
    if options.mode in {"stream", "cancel"}:
        body["stream"] = True
    payload = json.dumps(body).encode()
    key = f"authorization: Bearer {options.api_key}\r\n" if options.api_key else ""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{options.port}\r\n{key}"
        "accept: application/json\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\n\r\n"
    ).encode() + payload


async def connect(
    options: argparse.Namespace, tally: Tally, on_done: Callable[[Client], None]
) -> list[Client]:
    loop = asyncio.get_running_loop()
    turns = requests(options)
    events = options.chunks if options.mode == "stream" else 0

    def client() -> Client:
        return Client(turns, tally, on_done, events, options.rebuilt)

    pairs = [
        await loop.create_connection(client, "127.0.0.1", options.port) for _ in range(options.connections)
    ]
    return [protocol for _, protocol in pairs]


async def closed(options: argparse.Namespace, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    idle = asyncio.Event()
    left = options.connections
    end = perf_counter() + options.duration

    def again(client: Client) -> None:
        nonlocal left
        now = perf_counter()
        if now < end and not client.transport.is_closing():
            client.send(now)
            return
        left -= 1
        if left == 0:
            idle.set()

    clients = await connect(options, tally, again)
    for position, client in enumerate(clients):
        # Streams start spread over a second: in step they would be read as one.
        delay = position / len(clients) if options.mode == "stream" else 0.0
        loop.call_later(delay, client.start)
    await asyncio.wait_for(idle.wait(), options.duration + 60)


async def paced(options: argparse.Namespace, tally: Tally) -> None:
    rng = random.Random(0)
    waiting: deque[float] = deque()
    free: deque[Client] = deque()
    over, all_back = False, asyncio.Event()

    def done(client: Client) -> None:
        if waiting and not client.transport.is_closing():
            client.send(waiting.popleft())
            return
        free.append(client)
        if over and len(free) == options.connections:
            all_back.set()

    free.extend(await connect(options, tally, done))
    start = perf_counter()
    due = start
    while due < start + options.duration:
        due += rng.expovariate(options.rate)
        delay = due - perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        if free:
            # Timers of the loop are whole milliseconds: what it adds is not the proxy's.
            free.popleft().send(perf_counter())
        else:
            waiting.append(due)
    # Overloaded: what still waits would be answered later than this; it is not sent any more.
    tally.latencies.extend(perf_counter() - late for late in waiting)
    waiting.clear()
    over = True
    if len(free) == options.connections:
        all_back.set()
    await asyncio.wait_for(all_back.wait(), 30)


async def cancel(options: argparse.Namespace, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    turns = requests(options)
    end = perf_counter() + options.duration

    async def leave_again() -> None:
        while perf_counter() < end:
            made = partial(Leaver, next(turns), tally)
            _, leaver = await loop.create_connection(made, "127.0.0.1", options.port)
            await asyncio.wait_for(leaver.gone, 30)

    await asyncio.gather(*(leave_again() for _ in range(options.connections)))


MODES = {"closed": closed, "paced": paced, "stream": closed, "cancel": cancel}


async def run(options: argparse.Namespace) -> Tally:
    tally = Tally()
    started = perf_counter()
    await MODES[options.mode](options, tally)
    tally.latencies.sort()
    report = asdict(tally) | {"seconds": perf_counter() - started, **percentiles(tally.latencies)}
    del report["latencies"]
    json.dump(report, sys.stdout)
    return tally


def percentiles(ordered: list[float]) -> dict[str, float]:
    if not ordered:
        return {"p50_s": 0.0, "p99_s": 0.0}
    last = len(ordered) - 1
    return {"p50_s": ordered[round(last * 0.5)], "p99_s": ordered[round(last * 0.99)]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--duration", type=float, default=4.0, help="seconds")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second of `paced`")
    parser.add_argument("--chunks", type=int, default=100, help="events of a whole stream")
    parser.add_argument("--prompt-bytes", type=int, default=1000)
    parser.add_argument("--rebuilt", action="store_true", help="the proxy makes its own events")
    parser.add_argument("--api-key", default="")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(uvloop.run(run(arguments())).errors > 0)
