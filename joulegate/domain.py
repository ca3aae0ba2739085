"""Pure: the words every room shares: sizes, request types, objectives, and the work on one engine."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from joulegate.units import MegaHertz, Seconds, Watts


class Size(IntEnum):
    """Short, medium or long; the order is what spilling upwards relies on."""

    S = 0
    M = 1
    L = 2


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where short ends and long begins, in tokens (DynamoLLM: 256/1024 in, 100/350 out)."""

    input: tuple[int, int] = (256, 1024)
    output: tuple[int, int] = (100, 350)

    def input_size(self, tokens: float) -> Size:
        return _size(tokens, self.input)

    def output_size(self, tokens: float) -> Size:
        return _size(tokens, self.output)


def _size(tokens: float, cuts: tuple[int, int]) -> Size:
    if tokens < cuts[0]:
        return Size.S
    return Size.M if tokens < cuts[1] else Size.L


@dataclass(frozen=True, slots=True)
class RequestType:
    """One of nine: size of the input, then size of the output."""

    input: Size
    output: Size
    name: str = field(init=False, repr=False, compare=False)  # SS to LL

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.input.name + self.output.name)

    def fits_in(self, other: "RequestType") -> bool:
        """A request may only spill to a type at least as large in both dimensions (papers §1.7)."""
        return self.input <= other.input and self.output <= other.output


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a pool promises. Absolute ones per request; `max_slowdown` relative to maximum clock."""

    ttft: tuple[Seconds, Seconds, Seconds]  # by input size
    tpot: Seconds
    e2e: Seconds | None
    max_slowdown: float | None


@dataclass(slots=True)
class Batch:
    """The work of one engine iteration (engine-profile/1: B, K, N, A). Made by the million: not frozen."""

    decoding: int = 0  # sequences that get one token each
    context_tokens: float = 0.0  # sum of their contexts: tokens read per step
    prefill_tokens: int = 0  # new prompt tokens in this iteration
    prefill_attention: float = 0.0  # sum of n*(s + n/2) over the prompt chunks


class EngineModel(Protocol):
    """Latency and power of one engine instance as a function of its work and its clock.

    Watts are per GPU; an instance draws `tensor_parallel_size` times as much.
    """

    @property
    def clocks(self) -> tuple[MegaHertz, ...]:
        """Supported clocks, ascending."""
        ...

    @property
    def idle_watts(self) -> Watts: ...

    def iteration_time(self, batch: Batch, clock: MegaHertz) -> Seconds: ...

    def watts(self, batch: Batch, clock: MegaHertz) -> Watts: ...


@dataclass(slots=True, unsafe_hash=True)  # never changed: not frozen, one is made for every request
class LengthPrediction:
    """Output length of one request before it runs, in tokens."""

    q50: float
    q90: float
    classes: tuple[float, float, float]  # probability of S, M, L; sums to 1


@dataclass(slots=True, unsafe_hash=True)  # never changed: not frozen, which costs 3 us a request
class LengthQuery:
    """What a request shows about its output length. Text is only its two ends, and only in memory."""

    model: str
    key: str  # API key name, or "" when the gateway has none
    input_tokens: int
    max_tokens: int | None = None  # a cap on the output, never a prediction of it
    n: int = 1
    system_hash: int = 0  # of the system prompt; 0: none
    parent: int = 0  # `turn` of the request this one continues (session parent); 0: first turn
    has_tools: bool = False
    json_mode: bool = False  # response_format asks for JSON
    stop: bool = False
    text_head: str = ""  # first and last characters of the last user message
    text_tail: str = ""
    turn: int = 0  # of the conversation with this message: what its next turn carries as `parent`


class LengthPredictor(Protocol):
    """Predicts, and learns from what came out."""

    def predict(self, query: LengthQuery) -> LengthPrediction: ...

    def remaining(self, query: LengthQuery, prediction: LengthPrediction, generated: int) -> LengthPrediction:
        """The same prediction once `generated` tokens are out: tokens still to come."""
        ...

    def observe(self, query: LengthQuery, prediction: LengthPrediction, output_tokens: int) -> None: ...
