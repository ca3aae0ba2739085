"""Pure: gateway.yaml. Every setting of the gateway once, with its unit in its name and its default here."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from joulegate.domain import Cuts, Objectives, RequestType, Size
from joulegate.settings import profiles
from joulegate.settings.base import PARTIAL, Fault, File, InputFile, LocalPath, Route, Section, one_of
from joulegate.settings.energy import Energy
from joulegate.settings.fields import AgentUrl, Count, HttpUrl, Label, Name, Percent, Positive, repeated
from joulegate.settings.front import Auth, Edge, Listen, Log, Store
from joulegate.settings.nearest import did_you_mean
from joulegate.settings.plan import Plan, Scale
from joulegate.settings.power import Power
from joulegate.settings.profiles import Named, Read
from joulegate.units import Seconds

TypeName = Literal["SS", "SM", "SL", "MS", "MM", "ML", "LS", "LM", "LL"]
ALL_TYPES: tuple[TypeName, ...] = ("SS", "SM", "SL", "MS", "MM", "ML", "LS", "LM", "LL")


def _ascending(cuts: tuple[int, int]) -> tuple[int, int]:
    if not 0 < cuts[0] < cuts[1]:
        raise ValueError(f"expected two rising token counts, found {list(cuts)}")
    return cuts


CutPair = Annotated[tuple[int, int], AfterValidator(_ascending)]


class Types(Section):
    """Where short ends and long begins, in tokens."""

    input_cuts: CutPair = Field(default=(256, 1024), description="Tokens of the prompt.")
    output_cuts: CutPair = Field(default=(100, 350), description="Tokens of the answer, as predicted.")

    @property
    def cuts(self) -> Cuts:
        return Cuts(self.input_cuts, self.output_cuts)


class TtftMs(Section):
    """By the size of the input that no cache holds."""

    short: Positive = 250
    medium: Positive = 400
    long: Positive = 2000


class ObjectiveSettings(Section):
    """What is promised to a request. The absolute ones hold per request, at the 99th percentile."""

    ttft_ms: TtftMs = TtftMs()
    tpot_ms: Positive = Field(default=100, description="Per output token after the first.")
    e2e_ms: Positive | None = Field(default=None, description="Arrival to the last token; null: none.")
    max_slowdown: Annotated[float, Field(ge=1)] | None = Field(
        default=1.2,
        description="TPOT and median E2E against maximum clock; null: only the absolute objectives bind.",
    )

    @property
    def objectives(self) -> Objectives:
        ttft = self.ttft_ms
        return Objectives(
            ttft=(Seconds(ttft.short / 1e3), Seconds(ttft.medium / 1e3), Seconds(ttft.long / 1e3)),
            tpot=Seconds(self.tpot_ms / 1e3),
            e2e=None if self.e2e_ms is None else Seconds(self.e2e_ms / 1e3),
            max_slowdown=self.max_slowdown,
        )


class Timeouts(Section):
    connect_s: Positive = 2
    first_byte_s: Positive = Field(default=300, description="From the request sent to the first byte back.")
    idle_s: Positive = Field(default=60, description="Between two reads of a response.")


class Instance(Section):
    """One engine server at one address."""

    name: Label
    url: HttpUrl
    engine: Literal["vllm", "tgi", "openai"] = Field(
        default="vllm", description="openai: anything else that speaks it, without metrics."
    )
    emulated: bool = Field(
        default=False, description="Served by `joulegate emulate`; told the lengths of a replay."
    )
    tensor_parallel: Count = Field(default=1, description="GPUs it spans; all of them get one clock.")
    agent: Label | None = Field(
        default=None, description="Name of the agent on its node; null: clocks are unknown."
    )
    gpus: tuple[str, ...] = Field(
        default=(), description="UUIDs of its GPUs, as `nvidia-smi -L` prints them."
    )
    profile: InputFile | None = Field(
        default=None,
        description="Engine profile, or what `joulegate train latency` wrote; null: learned from traffic.",
    )
    slots: Count | None = Field(
        default=None, description="Sequences it runs at once (max_num_seqs); null: learned."
    )
    chunk_tokens: Count | None = Field(
        default=None, description="max_num_batched_tokens; null: the profile's."
    )
    kv_tokens: Count | None = Field(
        default=None, description="Tokens its KV cache holds; null: scraped or profiled."
    )
    api_key: SecretStr | None = Field(default=None, description="Sent to it instead of the client's key.")
    api_key_file: InputFile | None = None
    ca_file: InputFile | None = Field(default=None, description="CA that signed its certificate.")
    scale: Scale | None = Field(
        default=None, description="How the plan stops and starts it; null: it always runs."
    )

    def faults(self) -> Iterator[Fault]:
        yield from one_of(self, "api_key", "api_key_file")
        if self.scale is not None and self.scale.vllm_sleep is not None and self.engine != "vllm":
            yield Fault(("scale", "vllm_sleep"), f"engine: {self.engine} does not sleep", "use a command")
        if self.agent is not None and len(self.gpus) != self.tensor_parallel:
            yield Fault(
                ("gpus",),
                f"tensor_parallel is {self.tensor_parallel}, but {len(self.gpus)} GPUs are listed",
                "list the UUID of every GPU of the instance; `nvidia-smi -L` prints them",
            )
        if self.gpus and self.agent is None:
            yield Fault(("gpus",), "GPUs are listed, but no agent", "name the agent of their node")


class Pool(Section):
    """Instances that serve some of the nine request types under the same objectives."""

    name: Label
    types: tuple[TypeName, ...] = Field(
        default=ALL_TYPES, min_length=1, description="Input size, then output size; default: all nine."
    )
    objectives: ObjectiveSettings = Field(
        default=ObjectiveSettings(),
        description="Only what differs from the gateway's own.",
        json_schema_extra=PARTIAL,
    )
    mode: Literal["observe", "advise", "static", "enforce"] = Field(
        default="advise",
        description="observe: measure; advise: also decide; static: one clock; enforce: set every decision.",
    )
    static_clock_mhz: Count | None = Field(default=None, description="The clock of mode: static.")
    overload: Literal["queue", "shed"] = Field(
        default="queue",
        description="A request that cannot meet its objective: served after the others, or refused at once.",
    )
    queue_limit: int = Field(
        default=1000, ge=0, description="Requests that may wait; beyond it 503, or 429 where the pool sheds."
    )
    power_priority: int = Field(
        default=0, description="Where watts are short, pools with a higher one are slowed later."
    )
    min_warm: int = Field(
        default=1, ge=0, description="Instances that no plan stops; 0: the next request waits for a start."
    )
    timeouts: Timeouts = Timeouts()
    instances: tuple[Instance, ...] = Field(min_length=1)

    @property
    def request_types(self) -> tuple[RequestType, ...]:
        return tuple(RequestType(Size[name[0]], Size[name[1]]) for name in self.types)

    def faults(self) -> Iterator[Fault]:
        if self.mode == "static" and self.static_clock_mhz is None:
            yield Fault(("mode",), "static_clock_mhz is missing", "mode: static holds this one clock")
        if self.mode != "static" and self.static_clock_mhz is not None:
            yield Fault(("static_clock_mhz",), f"has no effect in mode: {self.mode}", "use mode: static")
        if self.min_warm > len(self.instances):
            yield Fault(
                ("min_warm",), f"there are {len(self.instances)} instances", "list more, or keep fewer"
            )
        needed = ("agent",) if self.mode in ("enforce", "static") else ()
        for index, instance in enumerate(self.instances):
            for key in (key for key in needed if getattr(instance, key) is None):
                yield Fault(
                    ("instances", index, key),
                    f"mode: {self.mode} needs the {key} of {instance.name}",
                    f"add '{key}:', or let the pool be mode: advise",
                )


class Model(Section):
    name: Name = Field(description="As the engines serve it and clients ask for it.")
    aliases: tuple[Name, ...] = Field(
        default=(), description="Other names clients may use; engines are asked for `name`."
    )
    adapters: tuple[Name, ...] = Field(
        default=(), description="LoRA adapters that the engines serve under these names."
    )
    pools: tuple[Pool, ...] = Field(min_length=1)

    def faults(self) -> Iterator[Fault]:
        yield from repeated("pool", ((("pools", i, "name"), p.name) for i, p in enumerate(self.pools)))
        owners: dict[str, str] = {}
        for index, pool in enumerate(self.pools):
            for owner in dict.fromkeys(owners[name] for name in pool.types if name in owners):
                shared = ", ".join(name for name in pool.types if owners.get(name) == owner)
                yield Fault(
                    ("pools", index, "types"),
                    f"{shared} is in pool {owner} already",
                    "a type belongs to one pool; a pool that lists no types takes all nine",
                )
            owners = {**dict.fromkeys(pool.types, pool.name), **owners}
        if missing := [name for name in ALL_TYPES if name not in owners]:
            yield Fault(("pools",), f"no pool takes {', '.join(missing)}", "add them to the types of a pool")


class Agent(Section):
    """The agent of one GPU node."""

    name: Label
    url: AgentUrl = Field(description="http://host:port, https://host:port or unix:/path.")
    token: SecretStr | None = None
    token_file: InputFile | None = None
    ca_file: InputFile | None = Field(default=None, description="CA that signed its certificate.")
    cert_file: InputFile | None = Field(
        default=None, description="The gateway's certificate, for an agent that asks for one."
    )
    key_file: InputFile | None = Field(default=None, description="The key of that certificate.")

    def faults(self) -> Iterator[Fault]:
        yield from one_of(self, "token", "token_file")
        if (self.cert_file is None) != (self.key_file is None):
            given, missing = ("cert_file", "key_file") if self.key_file is None else ("key_file", "cert_file")
            yield Fault((given,), f"{missing} is missing", "a certificate needs its key")
        elif self.cert_file is not None and not self.url.startswith("https:"):
            yield Fault(("cert_file",), "has no effect without TLS", "let the url begin with https:")


class Control(Section):
    """The control tick."""

    tick_ms: float = Field(default=250, ge=50, le=5000, description="Between two decisions.")
    lease_ttl_s: float = Field(
        default=2, ge=1, le=30, description="Clocks return to default this long after a crash."
    )
    dwell_s: float = Field(
        default=0.5, ge=0, description="A lower clock must hold for this long before it is set."
    )
    holdback_pct: Percent = Field(
        default=2, description="Instance-time at default clocks, to measure the saving."
    )
    mapping: Literal["probe", "trust"] = Field(
        default="probe",
        description="probe: clocks are set once an instance is seen to work on its GPUs; trust: at once.",
    )
    proofs_file: LocalPath | None = Field(
        default=None, description="Keeps which instance runs on which GPUs over a restart."
    )
    record_file: LocalPath | None = Field(
        default=None,
        description="Writes every input of the control laws and what they decided, 256 MiB at most.",
    )
    refit_interval_s: Positive | None = Field(
        default=300, description="Least time between two refits of an instance that drifts; null: never."
    )

    def faults(self) -> Iterator[Fault]:
        if self.tick_ms * 3 > self.lease_ttl_s * 1e3:
            yield Fault(
                ("lease_ttl_s",),
                f"must be at least three ticks of {self.tick_ms:g} ms",
                "one lost renewal must not let the lease run out",
            )


class Predictor(Section):
    """What is learned: output lengths, and engines that have changed."""

    use_max_tokens: bool = Field(default=True, description="Take max_tokens as a cap on the prediction.")
    prior: Literal["auto", "none"] | InputFile = Field(
        default="auto", description="Text prior: shipped, none, a file."
    )
    state_file: LocalPath | None = Field(default=None, description="Keeps learned lengths over a restart.")
    models_dir: LocalPath | None = Field(
        default=None, description="Keeps models of engines that were learned anew over a restart."
    )

    def faults(self) -> Iterator[Fault]:
        if self.state_file is not None and self.prior == "none":
            yield Fault(("state_file",), "has no effect with prior: none", "use prior: auto")


class Retry(Section):
    budget_pct: Percent = Field(default=10, description="Retries a pool may add to its requests.")


class Health(Section):
    interval_s: Positive = Field(
        default=1, description="Between two probes, and two scrapes, of an instance."
    )
    timeout_s: Positive = 2
    path: str = Field(default="/health", pattern=r"^/\S*$")


class Gateway(File):
    kind: Literal["gateway"] = "gateway"
    name: Name | None = Field(
        default=None, description="Of this replica, as leases name it; null: host and pid."
    )
    listen: Listen = Listen()
    auth: Auth = Auth()
    edge: Edge = Edge()
    types: Types = Types()
    objectives: ObjectiveSettings = ObjectiveSettings()
    models: tuple[Model, ...] = Field(min_length=1)
    agents: tuple[Agent, ...] = ()
    control: Control = Control()
    predictor: Predictor = Predictor()
    usage_injection: Literal["auto", "off"] = Field(
        default="auto",
        description="Ask engines for the usage of streams, and take the extra chunk out again.",
    )
    retry: Retry = Retry()
    health: Health = Health()
    energy: Energy = Energy()
    power: Power = Power()
    plan: Plan = Plan()
    store: Store = Store()
    log: Log = Log()

    def objectives_of(self, pool: Pool) -> Objectives:
        """The gateway's objectives with what the pool sets instead."""
        return _overlaid(self.objectives, pool.objectives).objectives

    def instances(self) -> Iterator[tuple[Route, Instance]]:
        """Every instance with its place in the file."""
        for m, model in enumerate(self.models):
            for p, pool in enumerate(model.pools):
                for i, instance in enumerate(pool.instances):
                    yield ("models", m, "pools", p, "instances", i), instance

    def misfits(self, read: Read) -> Iterator[Fault]:
        return profiles.misfits(self._profiled(), read)

    def _profiled(self) -> Iterator[Named]:
        for at, found in self.instances():
            pool = self.models[int(at[1])].pools[int(at[3])]
            own = "tpot_ms" in pool.objectives.model_fields_set
            tpot_at = (*(at[:4] if own else ()), "objectives", "tpot_ms")
            if found.profile is not None:
                tpot = self.objectives_of(pool).tpot
                yield Named(at, found.profile, found.tensor_parallel, tpot, tpot_at)

    def faults(self) -> Iterator[Fault]:
        yield from repeated("model", self._model_names())
        yield from repeated("agent", ((("agents", i, "name"), a.name) for i, a in enumerate(self.agents)))
        yield from repeated("instance", (((*at, "name"), found.name) for at, found in self.instances()))
        yield from repeated(
            "GPU",
            (((*at, "gpus", i), gpu) for at, found in self.instances() for i, gpu in enumerate(found.gpus)),
        )
        if self.plan.mode == "enforce" and all(found.scale is None for _, found in self.instances()):
            yield Fault(
                ("plan", "mode"), "no instance has `scale`", "say how instances are stopped and started"
            )
        known = [agent.name for agent in self.agents]
        for at, instance in self.instances():
            if instance.agent is not None and instance.agent not in known:
                listed = did_you_mean(instance.agent, known) or f"agents: {', '.join(known) or 'none'}"
                yield Fault((*at, "agent"), f"no agent is called {instance.agent!r}", listed)
        for d, domain in enumerate(self.power.domains):
            for a, name in enumerate(domain.agents):
                if name not in known:
                    listed = did_you_mean(name, known) or f"agents: {', '.join(known) or 'none'}"
                    yield Fault(("power", "domains", d, "agents", a), f"no agent is called {name!r}", listed)

    def _model_names(self) -> Iterator[tuple[Route, str]]:
        for m, model in enumerate(self.models):
            yield ("models", m, "name"), model.name
            yield from ((("models", m, "aliases", a), alias) for a, alias in enumerate(model.aliases))
            yield from ((("models", m, "adapters", a), name) for a, name in enumerate(model.adapters))


def _overlaid(base: ObjectiveSettings, over: ObjectiveSettings) -> ObjectiveSettings:
    changed: dict[str, object] = {name: getattr(over, name) for name in over.model_fields_set}
    if "ttft_ms" in changed:
        ttft = {name: getattr(over.ttft_ms, name) for name in over.ttft_ms.model_fields_set}
        changed["ttft_ms"] = base.ttft_ms.model_copy(update=ttft)
    return base.model_copy(update=changed)
