"""Pure: the world as the control laws see it: requests in flight, the load of an instance, its limits.

A `LoadBook` is the scoreboard of one engine. It is kept up to date incrementally, so that admission and
pick cost O(1) per instance and a tick never has to walk every request to know batch and contexts. The
gateway feeds it from the bytes it relays, the simulator from its engine: the laws cannot tell the
difference. What is not known is None, never a guess: a model, limits, gauges, the time an agent was heard.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from control.arrivals import Fading
from control.tenants import Tenants
from joulegate.domain import EngineModel, Objectives, RequestType
from joulegate.units import MegaHertz, Seconds


@dataclass(slots=True, eq=False)
class Flight:
    """One request from arrival to exit. Tokens; times are one monotonic clock's."""

    id: str
    type: RequestType
    input_tokens: int
    uncached_tokens: int  # the part of the prompt that is not in the instance's prefix cache
    output_q50: float
    output_q90: float
    arrived: Seconds
    ttft: Seconds  # objectives of this request
    tpot: Seconds
    e2e: Seconds | None = None
    max_tokens: float | None = None
    tenant: str = ""
    session: str = ""
    avoid: str = ""  # the instance that failed it already
    dispatched: Seconds | None = None
    first_token: Seconds | None = None
    last_token: Seconds | None = None
    tokens_out: float = 0.0
    lost: bool = False  # cannot meet its TTFT objective any more, even at maximum clock

    @property
    def deadline(self) -> Seconds:
        """When the first token is due."""
        return Seconds(self.arrived + self.ttft)

    @property
    def remaining(self) -> float:
        """Tokens still to come, the middle guess; past q50 on the way to q90, past that an overrun."""
        return _remaining(self, self.output_q50)

    @property
    def remaining_high(self) -> float:
        """Tokens still to come, for capacity: q90, and past it the request's own cap (papers §2.2)."""
        if self.tokens_out < self.output_q90:
            return self.output_q90 - self.tokens_out
        cap = self.max_tokens if self.max_tokens is not None else 2.0 * self.tokens_out
        return max(1.0, cap - self.tokens_out)


def _remaining(flight: Flight, guess: float) -> float:
    out = flight.tokens_out
    if out < guess:
        return guess - out
    if out < flight.output_q90:
        return max(1.0, 0.5 * (flight.output_q90 - out))
    return max(1.0, 0.5 * out)  # an overrun: heavy tails, the longer it ran the longer it will


class LoadBook:
    """What the gateway has put on one instance and what came back. Every method is O(1)."""

    __slots__ = (
        "context",
        "decoding",
        "ended",
        "first_after",
        "flights",
        "held",
        "promised",
        "prompts",
        "queued_tokens",
        "served_at",
        "tenants",
    )

    def __init__(self) -> None:
        self.tenants = Tenants()  # of the pool, shared by the books of its instances
        self.first_after = 0.0  # seconds from dispatch to the first token, a mean of the last twenty or so
        self.flights: dict[str, Flight] = {}
        self.prompts: dict[str, Flight] = {}  # sent, first token not seen; in the engine's own order (FCFS)
        self.ended: list[Flight] = []  # answered at least in part; whoever learns from them empties it
        self.decoding = 0
        self.context = 0.0  # tokens read per decode step
        self.held = 0.0  # tokens in KV, prompts counted whole from the moment they are sent
        self.promised = 0.0  # tokens in KV if every request runs to its q90
        self.queued_tokens = 0  # uncached prompt tokens sent and not answered yet
        self.served_at = 0.0  # when the engine began on the prompt now at its head, as far as can be seen

    @property
    def running(self) -> int:
        return len(self.flights)

    def join(self, tenants: Tenants) -> None:
        """The instance is in the pool of these tenants now."""
        for flight in self.flights.values():
            self.tenants.closed(flight.tenant)
            tenants.sent(flight.tenant)
        self.tenants = tenants

    def send(self, flight: Flight, now: Seconds) -> None:
        """`flight` was dispatched to this instance."""
        flight.dispatched = now
        if not self.prompts:
            self.served_at = now
        self.tenants.sent(flight.tenant)
        self.flights[flight.id] = flight
        self.prompts[flight.id] = flight
        self.queued_tokens += flight.uncached_tokens
        self.held += flight.input_tokens
        self.promised += flight.input_tokens + flight.output_q90

    def progress(self, flight: Flight, tokens: float, now: Seconds) -> None:
        """`tokens` more output tokens of `flight` were seen."""
        if self.prompts.pop(flight.id, None) is not None:
            flight.first_token = now
            if flight.dispatched is not None:
                self.first_after += 0.05 * (now - flight.dispatched - self.first_after)
            self.served_at = now
            self.queued_tokens -= flight.uncached_tokens
            self.decoding += 1
            self.context += flight.input_tokens
        flight.tokens_out += tokens
        flight.last_token = now
        self.context += tokens
        self.held += tokens

    def close(self, flight: Flight) -> None:
        """The one exit; closing twice does nothing."""
        if self.flights.pop(flight.id, None) is None:
            return
        self.tenants.closed(flight.tenant)
        if flight.last_token is not None:
            self.ended.append(flight)
        self.held -= flight.input_tokens + flight.tokens_out
        self.promised -= flight.input_tokens + flight.output_q90
        if self.prompts.pop(flight.id, None) is not None:
            self.queued_tokens -= flight.uncached_tokens
        else:
            self.decoding -= 1
            self.context -= flight.input_tokens + flight.tokens_out
        if not self.flights:  # floats: no drift survives an empty engine
            self.context = self.held = self.promised = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can hold. vLLM publishes neither of the first two (reference: control laws)."""

    max_num_seqs: int | None = None  # None: not learned yet
    chunk_budget: int = 2048  # prompt tokens of one iteration
    kv_capacity: int | None = None  # tokens; None: unknown
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class PeerPrompts:
    """Prompts at an engine that came through other gateways: all of them, due when the tightest is."""

    uncached_tokens: int
    deadline: Seconds
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine's own count, from its metrics page."""

    running: int
    waiting: int
    at: Seconds


@dataclass(slots=True, unsafe_hash=True)  # never changed: not frozen, two are made for every decision
class Room:
    """How much more an instance takes: the governor's answer to pick, valid until its next decision.

    Compared with the book as it is when a request arrives, so a request added since then counts.
    """

    decoding: int  # sequences (decoding and prompts) up to which every objective holds
    prompt_tokens: float  # prompt tokens queued up to which every first token is in time
    at: Seconds


NO_ROOM = Room(decoding=0, prompt_tokens=0.0, at=Seconds(0.0))


@dataclass(frozen=True, slots=True)
class Bands:
    """Observed / predicted iteration time by band of clocks: a lower band's is never smaller."""

    borders: tuple[float, ...]  # MHz, between two bands
    factors: tuple[float, ...]  # one more

    def at(self, clock: float) -> float:
        return self.factors[bisect_right(self.borders, clock)]


FILLED_MEMORY = Seconds(30.0)  # over which full iterations of prompts are counted; a few long answers


@dataclass(slots=True, eq=False)
class Instance:
    """One engine as the laws see it. The shell replaces fields as news comes in; the laws only read."""

    name: str
    pool: str
    book: LoadBook
    limits: Limits
    model: EngineModel | None  # None: no profile and nothing learned, so clocks stay at default
    ready: bool = True  # in rotation
    suspect: bool = False  # it failed its last request: used only where nothing better is
    unseen: bool = False  # its own metrics are stale or unreadable: what others put on it is unknown
    limited: bool = False  # hot, throttled, or held down by a power budget: used as a suspect one is
    gauges: Gauges | None = None
    peer_prompts: PeerPrompts | None = None
    prompt_window: float = 2048.0  # it gets no more prompts while it holds so many prompt tokens
    prompt_rate: float = 0.0  # prompt tokens per second it takes in at its clock
    slots: int = 16  # sequences it may hold, as learned (admission.learned_slots)
    tokens_per_step: float = 1.0  # of one sequence; more than 1 where the engine decodes speculatively
    correction: float = 1.0  # observed / predicted iteration time at its clock, smoothed
    bands: Bands | None = None  # the same at every clock; None: it is `correction` at all of them
    model_error: float = 0.05  # relative, of the corrected model: 95 % of iterations stay below
    clock: MegaHertz | None = None  # ceiling in force; None: driver default
    switch: Seconds | None = None  # clock-switch latency, as measured on its GPUs; None: not measured yet
    rise_takes: Seconds | None = None  # the same, as its clock was last decided with; None: it never was
    raised_from: MegaHertz | None = None  # ceiling before it was last raised; None: it never was
    raised_at: Seconds = Seconds(0.0)  # when that was decided
    telemetry_at: Seconds | None = None  # when the agent was last heard
    at_clock: Room = NO_ROOM  # headroom at the ceiling in force
    at_max: Room = NO_ROOM  # headroom at maximum clock
    tp: int = 1  # GPUs
    sessions: Mapping[str, int] = field(default_factory=dict)  # session -> tokens of it in the prefix cache
    filled: Fading = field(default_factory=lambda: Fading(FILLED_MEMORY))  # full iterations sent

    def send(self, flight: Flight, now: Seconds) -> None:
        """`flight` was dispatched to it."""
        self.book.send(flight, now)
        if full := flight.uncached_tokens // self.limits.chunk_budget:
            self.filled.add(full, now)

    def factor(self, clock: float) -> float:
        """What the model's seconds are multiplied by at `clock`."""
        return self.correction if self.bands is None else self.bands.at(clock)


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What a pool promises and whom it serves."""

    name: str
    objectives: Objectives
    types: frozenset[RequestType]
    shed: bool = False  # a lost request is refused with Retry-After instead of served last
    # largest input and output size it is meant for: what dominance compares
    reach: tuple[int, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        inputs, outputs = [t.input for t in self.types], [t.output for t in self.types]
        object.__setattr__(self, "reach", (max(inputs, default=-1), max(outputs, default=-1)))
