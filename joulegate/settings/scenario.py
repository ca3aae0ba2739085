"""Pure: scenario.yaml, what `joulegate simulate` compares policies on."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from joulegate.settings.base import Fault, File, InputFile, Section
from joulegate.settings.nearest import did_you_mean

Positive = Annotated[float, Field(gt=0)]
POLICIES = (
    "max-clock",
    "static-best",
    "single-pool",
    "multi-pool",
    "scale-inst",
    "scale-shard",
    "scale-freq",
    "throttllem",
    "joulegate",
    "joulegate-slowdown",
    "oracle",
)

OURS = ("joulegate", "joulegate-slowdown")


class Interactive(Section):
    """D: first token by input size, time per output token, per request."""

    ttft_ms: tuple[Positive, Positive, Positive] = (250.0, 400.0, 2000.0)
    tpot_ms: Positive = 100.0


class Throughput(Section):
    """T: time per output token and end to end; e2e_ms not set: P99 at the sustainable rate."""

    tpot_ms: Positive = 200.0
    e2e_ms: Positive | None = None


class LoadLevel(Section):
    """How much of the trace is replayed. `scale` not set: from what one instance sustains."""

    scale: Positive | None = Field(default=None, description="Times the trace; not set: worked out.")
    peak_pct: float = Field(
        default=77.5, gt=0, le=200, description="Load of the busiest minute, of the sustainable rate."
    )
    attainment_pct: float = Field(
        default=99.0, gt=0, le=100, description="D: attainment that still counts as sustained."
    )
    sustained_on: Literal["constant", "trace"] = Field(
        default="constant", description="A constant rate, or the trace itself, scaled."
    )


class Also(Section):
    """Another trace at the same time."""

    trace: InputFile
    scale: Positive


class Day(Section):
    """24 hours made of a shorter trace: shifted copies end to end, thinned or cloned to the hour's rate.

    The rate at hour h is mean_per_s times low + swing ((1 + cos(2 pi (h - peak_hour)/24))/2)^g, with g such
    that the mean over the day is mean_per_s.
    """

    mean_per_s: Positive
    low: float = Field(default=0.5, ge=0, lt=1)
    swing: float = Field(default=1.2, gt=0)
    peak_hour: float = Field(default=14.0, ge=0, lt=24)

    def faults(self) -> Iterator[Fault]:
        if self.low + self.swing <= 1.0:
            yield Fault(("swing",), "the mean is never reached", "low + swing must exceed 1")


class Pools(Section):
    """Whom joulegate's instances are set apart for, where it has `builds`."""

    border: Literal["one", "by input", "by output", "nine"] = Field(
        default="one", description="A pool for all, for each input or output size, or for each type."
    )
    elastic: bool = Field(default=True, description="Pools share instances while that saves.")


class Scenario(File):
    """One engine, one trace, the policies to compare."""

    kind: Literal["scenario"] = "scenario"
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    trace: InputFile = Field(description="timestamp_s,input_tokens,output_tokens; may be gzipped.")
    also: tuple[Also, ...] = Field(default=(), description="Other traces at the same time.")
    day: Day | None = Field(default=None, description="Make 24 hours of the trace; needs load.scale: 1.")
    profile: InputFile = Field(description="Engine profile (engine-profile/1) of the instance.")
    instances: int = Field(default=1, ge=1, le=4096, description="Of the baseline, at maximum clock.")
    builds: tuple[InputFile, ...] = Field(
        default=(), description="Profiles that joulegate may build instances from, as many as the load needs."
    )
    pools: Pools = Pools()
    objectives: Literal["D", "T"] = "D"
    interactive: Interactive = Interactive()
    throughput: Throughput = Throughput()
    max_slowdown: float = Field(
        default=1.2, ge=1.0, description="Of the policy joulegate-slowdown, against maximum clock."
    )
    load: LoadLevel = LoadLevel()
    policies: tuple[str, ...] = ("max-clock", "static-best", "throttllem", *OURS, "oracle")
    seeds: int | None = Field(
        default=None, ge=1, description="Not set: at least 3, and 2,000 requests of every input size."
    )

    def faults(self) -> Iterator[Fault]:
        if self.day is not None and self.load.scale != 1.0:
            yield Fault(("load", "scale"), "a day has its own rate", "set load.scale: 1")
        if self.also and self.load.scale is None:
            yield Fault(("load", "scale"), "not set, but there is a second trace", "say how often each is")
        for index, name in enumerate(self.policies):
            if name not in POLICIES:
                known = f"policies: {', '.join(POLICIES)}"
                yield Fault(
                    ("policies", index), f"no such policy: {name!r}", did_you_mean(name, POLICIES) or known
                )
