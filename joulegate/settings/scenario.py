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
    "throttllem",
    "scale-freq",
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


class Scenario(File):
    """One engine, one trace, the policies to compare."""

    kind: Literal["scenario"] = "scenario"
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    trace: InputFile = Field(description="timestamp_s,input_tokens,output_tokens; may be gzipped.")
    profile: InputFile = Field(description="Engine profile (engine-profile/1) of the instance.")
    instances: int = Field(default=1, ge=1, le=64, description="Of the baseline, at maximum clock.")
    builds: tuple[InputFile, ...] = Field(
        default=(), description="Profiles that joulegate may build instances from, as many as the load needs."
    )
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
        for index, name in enumerate(self.policies):
            if name not in POLICIES:
                known = f"policies: {', '.join(POLICIES)}"
                yield Fault(
                    ("policies", index), f"no such policy: {name!r}", did_you_mean(name, POLICIES) or known
                )
