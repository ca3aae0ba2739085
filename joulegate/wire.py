"""Pure: the messages between gateway and agent (HTTP/JSON, version 1). Bounded.

    POST /v1/sync   SyncRequest  -> 200 SyncReply | 409 LeaseRefused
    POST /v1/boost  BoostRequest -> 200 BoostReply
    POST /v1/caps   CapsRequest  -> 200 CapsReply | 409 WireError
    POST /v1/release ReleaseRequest -> 200 ReleaseReply
    GET  /v1/gpus                -> 200 GpuList
    GET  /v1/telemetry           -> SSE of GpuList

Unknown fields of a request are refused: a wish that the agent does not know must not be dropped silently.
Those of an answer are passed over, so that an agent may be one version ahead of its gateways.

A target is a ceiling: the agent locks clocks to (lowest supported, target), never (target, target).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

VERSION: Literal[1] = 1
MAX_GPUS = 64
Uuid = Annotated[str, Field(min_length=1, max_length=96, pattern=r"^[A-Za-z0-9_.:/-]+$")]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@/-]+$")]
Mhz = Annotated[int, Field(ge=1, le=10_000)]
Group = Annotated[tuple[Uuid, ...], Field(min_length=1, max_length=MAX_GPUS)]


def _ttl(seconds: float) -> float:
    if 0.0 < seconds < 1.0:
        raise ValueError("0 gives the lease back; a lease lasts for at least 1 s")
    return seconds


Ttl = Annotated[float, Field(ge=0.0, le=30.0), AfterValidator(_ttl)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(Message):
    model_config = ConfigDict(extra="ignore")


class SyncRequest(Message):
    """Renew (or ask for) the lease and set a clock ceiling per GPU; null takes the ceiling away.

    GPUs left out keep what they have, for as long as the lease lives. GPUs of one group (a tensor-parallel
    instance) are lowered together or not at all. Without groups, one failed write takes all of them up.
    A TTL of 0 gives the lease back: it ends with this request, and whoever asks next is granted one.
    """

    version: Literal[1] = VERSION
    holder: Name
    lease: Annotated[int, Field(ge=0)] | None = None  # token of the lease held; null: ask for one
    ttl_s: Ttl = 2.0
    targets: Annotated[dict[Uuid, Mhz | None], Field(max_length=MAX_GPUS)] = Field(default_factory=dict)
    groups: Annotated[tuple[Group, ...], Field(max_length=MAX_GPUS)] = ()  # tensor-parallel instances
    reason: Annotated[str, Field(max_length=200)] = ""


class GpuState(Answer):
    """One GPU as the agent sees it at one moment."""

    uuid: Uuid
    index: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(max_length=128)]
    clock_mhz: int  # SM clock read back
    ceiling_mhz: int | None  # ceiling that is set now; None: driver default
    power_w: float
    energy_j: float  # counter since the driver loaded, or since the agent started when integrated
    energy_source: Literal["counter", "integrated"] = "counter"
    temperature_c: float
    reasons: tuple[str, ...] = ()  # clock-event reasons that are active: idle, power_cap, thermal, ...
    processes: tuple[int, ...] = ()  # pids with a compute context
    fault: str | None = None  # why this GPU cannot be read or set now
    actuation_s: float | None = None  # slowest of the last lowerings: from the call until the clock was there
    observed_at_s: float  # agent's monotonic clock


class GpuInfo(Answer):
    """What does not change: limits, capabilities."""

    uuid: Uuid
    index: Annotated[int, Field(ge=0)]
    name: Annotated[str, Field(max_length=128)]
    pci: Annotated[str, Field(max_length=64)] = ""
    clocks_mhz: tuple[int, ...]  # supported SM clocks, ascending
    allowed_mhz: tuple[int, int]  # clamp of the agent's own YAML
    power_limit_w: float | None = None
    cap_range_w: tuple[float, float] | None = None  # lowest and highest power cap; null: it has none
    cap_w: float | None = None  # power cap that a budget has set and that stands; null: none of ours
    writable: bool  # allow_writes, and the driver lets us
    why_not_writable: str | None = None


class SyncReply(Answer):
    version: Literal[1] = VERSION
    lease: int  # token of the lease now held
    expires_in_s: float
    restarts: int  # how often the agent started: a change means its memory is new
    gpus: tuple[GpuState, ...]


class LeaseRefused(Answer):
    """409: somebody else holds the lease, or the token is stale. Observing needs no lease."""

    version: Literal[1] = VERSION
    holder: str
    retry_in_s: float
    message: str
    gpus: tuple[GpuState, ...]


class BoostRequest(Message):
    """Raise the floor under the ceilings for a moment. No lease needed; never lowers anything."""

    version: Literal[1] = VERSION
    holder: Name
    floors: Annotated[dict[Uuid, Mhz], Field(min_length=1, max_length=MAX_GPUS)]
    duration_s: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    reason: Annotated[str, Field(max_length=200)] = ""


class BoostReply(Answer):
    version: Literal[1] = VERSION
    gpus: tuple[GpuState, ...]


class CapsRequest(Message):
    """Set power caps that outlive leases, agents and reboots of either; null gives back what was set before.

    `epoch` orders budgets: a smaller one than the agent has seen is refused.
    """

    version: Literal[1] = VERSION
    holder: Name
    epoch: Annotated[int, Field(ge=0)]
    caps: Annotated[
        dict[Uuid, Annotated[float, Field(gt=0.0, le=10_000.0)] | None], Field(max_length=MAX_GPUS)
    ]
    reason: Annotated[str, Field(max_length=200)] = ""


class CapState(Answer):
    cap_w: float | None  # read back; None: cannot be read
    wanted_w: float | None  # None: not ours
    fault: str | None = None


class CapsReply(Answer):
    version: Literal[1] = VERSION
    epoch: int
    caps: dict[str, CapState]


class ReleaseRequest(Message):
    """Reset every clock and let the driver library go; the agent stays up (driver upgrades)."""

    version: Literal[1] = VERSION
    holder: Name
    resume: bool = False  # true: take the GPUs up again


class ReleaseReply(Answer):
    version: Literal[1] = VERSION
    released: bool


class GpuList(Answer):
    version: Literal[1] = VERSION
    node: str
    infos: tuple[GpuInfo, ...] = ()
    gpus: tuple[GpuState, ...]


class WireError(Answer):
    """Every other refusal: 400, 401, 403, 413, 429, 503."""

    error: str
    help: str = ""
