"""Shell: the open-loop load generator: streaming chat completions at the instants a trace says.

    senders = [Sender(target) for target in targets]     # one per URL
    lateness = await play(arrivals, senders, progress)   # every sender gets every arrival at the same instant
    await finish(senders, patience, progress)            # until the last answer, or nothing comes any more
    sender.tally                                         # simulator.replay_report.Tally, for its `summary`

It never waits for an answer before the next request, and measures from the instant a request was due.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex

import orjson

from joulegate.arrivals import Arrival
from simulator.emulator_text import CHARACTERS_PER_TOKEN, CONVERSATION_TOKENS, MESSAGE_TOKENS
from simulator.histogram import Histogram
from simulator.loadgen_http import Pool
from simulator.replay_report import Answer, Engine, Tally

LATENESS_BOUNDS = tuple(0.0001 * 1.05**k for k in range(220))  # 0.1 ms to 4.6 s
FILLER = "if self is not the same as this return one more list of them and then go on to what is next "
FILLER_WORDS = tuple(FILLER.split())
# a chat template and the unique start of a prompt take about so many tokens of a real tokenizer
FRAME_TOKENS = 30


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    model: str
    engine: Engine
    api_key: str | None = None


class Sender:
    """Sends to one target and tallies its answers."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.tally = Tally()
        self.heard = time.monotonic()  # when something last came
        self._pool = Pool(target.url)
        self._run = token_hex(3)
        self._head = self._fixed_head()
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        return self.tally.sent - len(self.tally.answers)

    def send(self, arrival: Arrival, due: float) -> None:
        """Put one request on its way. `due` is time.monotonic() of its arrival."""
        index = self.tally.sent
        self.tally.sent += 1
        request = self._request(arrival, index)
        reader = AnswerReader(self, arrival, due)
        if not self._pool.send_now(request, reader):
            task = asyncio.get_running_loop().create_task(self._pool.send(request, reader))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def close(self) -> None:
        """Drop every connection; requests in flight end as errors."""
        self._pool.close()

    def _request(self, arrival: Arrival, index: int) -> bytes:
        emulated = self.target.engine is Engine.EMULATED
        prompt = _emulated_prompt if emulated else _words_prompt
        body: dict[str, object] = {
            "model": self.target.model,
            "messages": [
                {"role": "user", "content": prompt(f"{self._run}{index:06x}", arrival.input_tokens)}
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        header = b""
        if emulated:
            header = b"x-joulegate-true-output-tokens: %d\r\n" % arrival.output_tokens
        else:
            forced = arrival.output_tokens
            body |= {"max_tokens": forced, "min_tokens": forced, "ignore_eos": True}
        raw = orjson.dumps(body)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, header, len(raw), raw)

    def _fixed_head(self) -> bytes:
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            f"host: {self._pool.authority}",
            "content-type: application/json",
            "accept: text/event-stream",
        ]
        if self.target.api_key is not None:
            lines.append(f"authorization: Bearer {self.target.api_key}")
        return "\r\n".join((*lines, "")).encode()


def _emulated_prompt(unique: str, tokens: int) -> str:
    """A prompt that counts exactly `tokens` on an emulated engine (at least 10)."""
    length = CHARACTERS_PER_TOKEN * (tokens - CONVERSATION_TOKENS - MESSAGE_TOKENS)
    missing = max(0, length - len(unique))
    return unique + (FILLER * (missing // len(FILLER) + 1))[:missing]


def _words_prompt(unique: str, tokens: int) -> str:
    """A prompt of about `tokens` for a real tokenizer: words that most have as one token."""
    words = max(1, tokens - FRAME_TOKENS)
    repeats = words // len(FILLER_WORDS) + 1
    return " ".join((unique, *(FILLER_WORDS * repeats)[:words]))


class AnswerReader:
    """Reads one answer as it comes."""

    __slots__ = (
        "_arrival",
        "_code",
        "_done",
        "_due",
        "_error",
        "_first",
        "_id",
        "_last",
        "_rest",
        "_sender",
        "_tokens",
        "_usage",
    )

    def __init__(self, sender: Sender, arrival: Arrival, due: float) -> None:
        self._sender, self._arrival, self._due = sender, arrival, due
        self._code = 0
        self._rest = b""  # an event that is not complete yet
        self._first = self._last = float("nan")  # when the first and the latest token came
        self._tokens = 0  # events that brought text
        self._usage: dict[str, int] = {}
        self._id = ""
        self._done = False
        self._error = ""

    def status(self, code: int) -> None:
        self._code = code

    def body(self, part: bytes, now: float) -> None:
        self._sender.heard = now
        if self._code != 200:
            return
        if self._rest:
            part = self._rest + part
        *events, self._rest = part.split(b"\n\n")
        for event in events:
            self._event(event, now)

    def ended(self, now: float, error: str) -> None:
        sender, arrival = self._sender, self._arrival
        sender.heard = now
        tokens = self._usage.get("completion_tokens", self._tokens)
        sender.tally.answers.append(
            Answer(
                input_tokens=arrival.input_tokens,
                wanted=arrival.output_tokens,
                ttft=self._first - self._due,
                e2e=self._last - self._due,
                tokens=tokens,
                prompt_tokens=self._usage.get("prompt_tokens", 0),
                exact=self._exact(),
                id=self._id,
                error=error or self._error or self._fault(),
            )
        )

    def _event(self, event: bytes, now: float) -> None:
        at = event.find(b'"content":"')
        if at >= 0 and event[at + 11 : at + 12] != b'"':
            if self._tokens:
                self._sender.tally.itl.observe(now - self._last)
            else:
                self._first = now
                self._id = _id(event)
            self._last = now
            self._tokens += 1
        elif event == b"data: [DONE]":
            self._done = True
        elif b'"usage":{' in event:
            self._usage = _usage(event)
        elif event.startswith(b'data: {"error"'):
            self._error = "error in the stream"

    def _exact(self) -> bool:
        usage = self._usage
        return (
            usage.get("completion_tokens") == self._arrival.output_tokens
            and usage.get("total_tokens") == usage.get("prompt_tokens", 0) + usage["completion_tokens"]
        )

    def _fault(self) -> str:
        """Why an answer that ended as HTTP is none."""
        if self._code != 200:
            return f"status {self._code}"
        if not self._done:
            return "no [DONE]"
        return "" if self._tokens else "no text"


def _id(event: bytes) -> str:
    start = event.find(b'"id":"') + 6
    return event[start : event.find(b'"', start)].decode("latin-1")


def _usage(event: bytes) -> dict[str, int]:
    usage = orjson.loads(event.removeprefix(b"data:"))["usage"]
    return {name: value for name, value in usage.items() if isinstance(value, int)}


async def play(
    arrivals: Sequence[Arrival], senders: Sequence[Sender], progress: Callable[[float], None]
) -> Histogram:
    """Send every arrival to every sender at its instant; returns how late requests were sent, in seconds.

    `progress` is called about once a second with the seconds since the start.
    """
    lateness = Histogram(LATENESS_BOUNDS)
    start = time.monotonic() + 0.05
    said = 0.0
    for arrival in arrivals:
        due = start + arrival.at
        while (left := due - time.monotonic()) > 0:
            await asyncio.sleep(min(max(0.001, left), 1.0))
            if time.monotonic() - start > said + 1.0:
                said = time.monotonic() - start
                progress(said)
        for sender in senders:
            sender.send(arrival, due)
        lateness.observe(time.monotonic() - due)
    return lateness


async def finish(senders: Sequence[Sender], patience: float, progress: Callable[[float], None]) -> None:
    """Wait until every answer is there, or until nothing has come from anybody for `patience` seconds."""
    start = time.monotonic()
    while any(sender.in_flight for sender in senders):
        await asyncio.sleep(0.05)
        now = time.monotonic()
        progress(now - start)
        if now - max(start, *(sender.heard for sender in senders)) > patience:
            break
    for sender in senders:
        sender.close()
    await asyncio.sleep(0.05)  # so that closed connections end as errors
