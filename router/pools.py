"""Pure: the gateway's picture of itself: models, their pools, the instances in them.

What the control laws read of an instance is its `law` (control.state.Instance); what only the gateway needs
(health, GPUs, the agent, tallies) stands beside it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from control.admission import PoolQueue
from control.governor import Decision
from control.mapping import Proof, Standing
from control.state import Flight, Instance, PoolRules
from control.steering import Steering
from joulegate.domain import Batch, Cuts, LengthPrediction, LengthPredictor, LengthQuery
from joulegate.units import MegaHertz, Seconds
from router.burn import Burn
from router.energy import EnergyBook
from router.engine_metrics import Gauges
from router.fleet import Health, InstanceStatus
from router.holdback_meter import HoldbackMeter
from router.load_meter import LoadMeter
from router.ports import Endpoint
from router.speculation import Speculation
from router.speed import Speed
from router.tally import InstanceTally, PoolTally

RECENT = 1000  # requests and decisions that are remembered for people
FIRST_CHARS_PER_TOKEN = 4.0
FIRST_TOKENS_PER_EVENT = 1.0
MAX_SESSIONS = 20_000  # an instance


@dataclass(slots=True)
class Expected:
    """What an instance takes at its present load and clock, in seconds."""

    step: float  # one decode step with one sequence more
    per_token: float  # one prompt token of a full chunk
    iteration: float  # one iteration without prompt tokens


@dataclass(slots=True, eq=False)
class Member:
    """One instance. `law.name` is its name."""

    model_name: str
    law: Instance
    status: InstanceStatus
    agent: str | None
    gpus: tuple[str, ...]
    known_slots: int | None
    speed: Speed
    holdback: HoldbackMeter
    kind: str = ""  # those of one kind are alike: the same profile, the same size
    sleeps: bool = False  # its GPU keeps a context while it is stopped
    decision: Decision | None = None
    expected: Expected | None = None  # of requests sent now; None: no model
    acts: bool = False  # its clocks are ours to set: its pool acts, and it obeys
    wanted: MegaHertz | None = None  # by its governor; None: no ceiling
    limit: MegaHertz | None = None  # by a power budget; None: none binds
    target: MegaHertz | None = None  # ceiling last asked for
    target_at: Seconds = Seconds(float("-inf"))
    assertions: int = 0  # since its clock was last right
    proof: Proof = field(default_factory=Proof)  # that it runs on these GPUs
    distrusted: str = ""  # why its clocks are left alone until restart
    tally: InstanceTally = field(default_factory=InstanceTally)
    energy_at: dict[str, float] = field(default_factory=dict)  # counter last seen, by GPU
    energy: EnergyBook = field(default_factory=EnergyBook)
    trips: dict[str, "Trip"] = field(default_factory=dict)  # by flight, until their last joules are known
    open: int = 0  # requests it holds, of every kind
    blind: dict[str, Flight] = field(default_factory=dict)  # not streaming: progress is estimated, not seen
    sessions: "OrderedDict[str, int]" = field(default_factory=OrderedDict)  # law.sessions, newest last
    started: float | None = None  # unix time at which its engine's process began
    speculation: Speculation = field(default_factory=Speculation)
    header_lines: bytes = field(init=False)  # what every answer of it says
    home: str = field(init=False)  # the pool it is configured in
    kv_known: bool = field(init=False)  # by settings or profile: else as its engine says

    def __post_init__(self) -> None:
        self.law.sessions = self.sessions
        self.home = self.law.pool
        self.kv_known = self.law.limits.kv_capacity is not None
        self.move(self.home)

    def move(self, pool: str) -> None:
        """It belongs to `pool` now; the pools themselves are told by `router.elastic`."""
        self.law.pool = pool
        self.header_lines = f"x-joulegate-pool: {pool}\r\nx-joulegate-instance: {self.law.name}\r\n".encode()

    @property
    def endpoint(self) -> Endpoint:
        return self.status.endpoint

    @property
    def proven(self) -> bool:
        """Whether lowering the clocks of its GPUs slows this instance and nobody else."""
        return self.proof.state is Standing.PROVEN

    @property
    def held(self) -> bool:
        """Whether its clocks are set by us, whatever for."""
        return self.acts or self.limit is not None

    def refresh(self, now: Seconds) -> None:
        """Bring `law.ready` up to date with health."""
        self.law.ready = self.status.may_take(self.open, now)
        self.law.suspect = self.status.health is Health.SUSPECT

    def follow(self, gauges: Gauges) -> None:
        """What its engine says of itself: another process has an empty cache, maybe of another size."""
        if gauges.started is not None:
            if self.started not in (None, gauges.started):
                self.sessions.clear()
            self.started = gauges.started
        self.law.tokens_per_step = self.speculation.hear(gauges)
        tokens = gauges.kv_capacity_tokens
        if not self.kv_known and tokens not in (None, self.law.limits.kv_capacity):
            self.law.limits = replace(self.law.limits, kv_capacity=tokens)

    def remember(self, session: str, tokens: int) -> None:
        """`session` has so many tokens in this instance's prefix cache, as far as we know."""
        self.sessions[session] = tokens
        self.sessions.move_to_end(session)
        if len(self.sessions) > MAX_SESSIONS:
            self.sessions.popitem(last=False)

    def batch(self) -> Batch:
        """The decode step it is working on."""
        book = self.law.book
        return Batch(decoding=book.decoding, context_tokens=max(0.0, book.context))


class Learned:
    """A ratio learned from what passes by: an exponentially weighted mean of the last hundred or so."""

    __slots__ = ("value", "weight")

    def __init__(self, first: float, weight: float = 0.02) -> None:
        self.value = first
        self.weight = weight

    def add(self, value: float) -> None:
        self.value += self.weight * (value - self.value)


@dataclass(slots=True, eq=False)
class Pool:
    """Members under the same promise. `mode` is what is configured; `paused` overrides it."""

    rules: PoolRules
    mode: str
    static_clock: MegaHertz | None
    members: tuple[Member, ...]
    queue: PoolQueue  # the one that steering works on
    queue_limit: int
    power_priority: int = 0  # pools with a higher one are slowed later by power budgets
    tally: PoolTally = field(default_factory=PoolTally)
    paused: str = ""  # why clocks are left at default: an operator's pause, or objectives burning
    retries: float = 3.0  # retries it may spend now
    burn: Burn = field(default_factory=Burn)
    said_resting: bool = False  # what the log was told last
    resting: bool = False  # control costs objectives here: clocks stay at default for a while
    desired: int | None = None  # instances that should run, by the plan; None: nobody plans
    host: str = ""  # the pool it is merged into for now; "": none
    home: PoolRules = field(init=False)  # as configured, merged or not

    def __post_init__(self) -> None:
        self.home = self.rules

    @property
    def name(self) -> str:
        return self.rules.name

    @property
    def acts(self) -> bool:
        """Whether clocks are set here."""
        return self.sets_clocks and not self.paused and not self.resting

    @property
    def sets_clocks(self) -> bool:
        """By its mode, whatever the moment."""
        return self.mode in ("static", "enforce")


@dataclass(slots=True, eq=False)
class Model:
    """One model name, its pools and what has been learned of its traffic."""

    name: str
    aliases: tuple[str, ...]
    cuts: Cuts
    pools: Mapping[str, Pool]
    steering: Steering
    predictor: LengthPredictor
    use_max_tokens: bool
    chars_per_token: Learned = field(default_factory=lambda: Learned(FIRST_CHARS_PER_TOKEN))
    tokens_per_event: Learned = field(default_factory=lambda: Learned(FIRST_TOKENS_PER_EVENT))
    cache_yield: Learned = field(default_factory=lambda: Learned(0.0))  # of a session's prefix, share cached
    load: LoadMeter = field(default_factory=LoadMeter)
    longest: int | None = None  # tokens, prompt and answer together, that any of its engines takes
    members: Mapping[str, Member] = field(init=False)
    rules: tuple[PoolRules, ...] = field(init=False)

    def __post_init__(self) -> None:
        every = [member for pool in self.pools.values() for member in pool.members]
        self.members = {member.law.name: member for member in every}
        self.rules = tuple(pool.rules for pool in self.pools.values())

    def hear_contexts(self) -> None:
        """An engine says another context than before."""
        said = [member.status.context for member in self.members.values()]
        self.longest = max((tokens for tokens in said if tokens is not None), default=None)


@dataclass(slots=True)
class RequestRecord:
    """One request as people ask about it: what was predicted, then what happened."""

    id: str
    model: str
    type: str
    pool: str
    instance: str
    reason: str
    arrived: Seconds
    input_tokens: int
    predicted_output: tuple[float, float]  # q50, q90
    predicted_ttft: float | None  # seconds, counted from arrival
    predicted_tpot: float | None
    clock: MegaHertz | None
    outcome: str = ""
    ttft: float | None = None
    tpot: float | None = None
    queued: float = 0.0
    output_tokens: int | None = None
    joules: float = 0.0  # attributed so far


@dataclass(slots=True, eq=False)
class Trip:
    """What is known of a request that produces tokens."""

    model: Model
    pool: Pool  # where its type belongs; it may be served by a larger one
    flight: Flight
    query: LengthQuery
    prediction: LengthPrediction
    request_id: str
    stream: bool
    input_chars: int  # 0: the token count was given, not guessed
    entered: Seconds  # the queue
    queued: float = 0.0  # seconds in it
    record: RequestRecord | None = None
    last: Seconds | None = None  # when output last arrived
    booked: Seconds | None = None  # when the output last arrived that the books know of
    unbooked: int = 0  # events since then


@dataclass(slots=True, eq=False)
class Fleet:
    """Everything the gateway knows, in one place."""

    models: Mapping[str, Model]  # by name and by alias
    requests: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=RECENT))
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=RECENT))
    draining: bool = False

    def unique(self) -> Iterator[Model]:
        """Models, each once."""
        for name, model in self.models.items():
            if name == model.name:
                yield model

    def pools(self) -> Iterator[tuple[Model, Pool]]:
        for model in self.unique():
            for pool in model.pools.values():
                yield model, pool

    def members(self) -> Iterator[tuple[Model, Pool, Member]]:
        for model, pool in self.pools():
            for member in pool.members:
                yield model, pool, member
