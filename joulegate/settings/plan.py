"""Pure: how many instances run, and how one instance is stopped and started."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from joulegate.settings.base import Fault, InputFile, Section
from joulegate.settings.fields import Count, Percent, Positive

Word = Annotated[str, Field(min_length=1, max_length=4096)]
Words = Annotated[tuple[Word, ...], Field(min_length=1, max_length=64)]
Workload = Annotated[str, Field(pattern=r"^(deployment|statefulset)/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
WAYS = ("vllm_sleep", "command", "kubernetes")


class VllmSleep(Section):
    """The engine stays and gives its GPU memory back; it runs with --enable-sleep-mode and dev mode."""

    level: Literal[1, 2] = Field(
        default=1, description="1: weights to host memory; 2: dropped, and loaded again to wake."
    )


class Command(Section):
    """Programs of the operator's, run without a shell. The engine's health says whether they worked."""

    start: Words = Field(description="Program and arguments. Run once more, it must do no harm.")
    stop: Words = Field(description="The same, to stop the engine.")
    pass_env: tuple[VariableName, ...] = Field(
        default=(), description="Variables of the gateway's that they get, besides PATH, HOME and LANG."
    )


class Kubernetes(Section):
    """A workload is scaled through its API server."""

    workload: Workload = Field(description="statefulset/NAME or deployment/NAME.")
    namespace: Namespace = "default"
    replica: int = Field(
        default=0, ge=0, description="Which pod of the stateful set this is; a deployment has one."
    )
    kubeconfig: InputFile | None = Field(default=None, description="null: the pod's own service account.")

    def faults(self) -> Iterator[Fault]:
        if self.replica and self.workload.startswith("deployment/"):
            yield Fault(
                ("replica",),
                "the pods of a deployment have no addresses of their own",
                "use a stateful set, or a deployment for each instance",
            )


class Scale(Section):
    """How one instance is stopped and started: one of the three ways."""

    vllm_sleep: VllmSleep | None = None
    command: Command | None = None
    kubernetes: Kubernetes | None = None
    drain_s: Positive = Field(
        default=300, description="Its requests may take so long to end; longer, and it stays."
    )
    stop_s: Positive = Field(default=120, description="Until it has stopped.")
    start_s: Positive = Field(default=900, description="Until it serves.")

    def faults(self) -> Iterator[Fault]:
        given = [way for way in WAYS if getattr(self, way) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            yield Fault((given[-1],) if given else (), f"one of {', '.join(WAYS)}; {found}")


class Plan(Section):
    """How many instances run. Only those with `scale` are ever stopped or started."""

    mode: Literal["off", "advise", "enforce"] = Field(
        default="off", description="advise: show what would be done; enforce: do it."
    )
    pools: Literal["fixed", "elastic"] = Field(
        default="fixed",
        description="elastic: pools that cost more apart are merged, and instances move between pools.",
    )
    epoch_s: float = Field(
        default=300, ge=5, le=3600, description="Between two plans of which pools share their instances."
    )
    calm_s: float = Field(
        default=300, ge=0, description="Fewer instances only once fewer have been enough for so long."
    )
    cover_pct: Percent = Field(
        default=90, description="Share of the epochs whose busiest tenth the load forecast should cover."
    )
    at_once: Count = Field(
        default=1, description="Instances of a pool that stop at a time; those that start do so together."
    )
    tries: Count = Field(default=3, description="Failed in a row, and an instance is given up for a while.")
    back_off_s: Positive = Field(default=10, description="After the first failure; doubled by each other.")
    given_up_s: Positive = Field(default=1800, description="Until an instance given up is tried again.")
