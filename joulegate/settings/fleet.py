"""Pure: fleet.yaml, what `joulegate emulate` serves: nodes with emulated GPUs, engine instances on them."""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from joulegate.settings.base import Fault, File, InputFile, LocalPath, Section
from joulegate.settings.nearest import did_you_mean

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@/-]+$")]
GpuPlace = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[0-9]+$")]
Count = Annotated[int, Field(ge=1)]


class Node(Section):
    """A machine whose GPUs live in one plant file, which its agent opens too."""

    name: Name
    plant: LocalPath = Field(description="File of the emulated GPUs; made new at every start.")
    gpus: int = Field(ge=1, le=64, description="How many GPUs.")
    profile: InputFile = Field(description="Engine profile that names the GPU, its clocks and its power.")

    def uuid(self, index: int) -> str:
        return f"GPU-{self.name}-{index}"


class EmulatedEngine(Section):
    """One engine server: a port, a profile, the GPUs it spans."""

    name: Name
    port: int = Field(ge=1, le=65535)
    engine: Literal["vllm", "tgi"] = "vllm"
    model: ModelName = Field(description="The name it serves.")
    profile: InputFile = Field(description="How fast and how hungry it is (engine-profile/1).")
    gpus: tuple[GpuPlace, ...] = Field(
        min_length=1, description="node/index of each GPU; as many as the profile's tp, on one node."
    )
    max_model_len: Count = Field(default=16384, description="Prompt and output together, tokens.")
    max_num_seqs: Count | None = Field(default=None, description="Instead of the profile's.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Instead of the profile's.")
    kv_capacity_tokens: Count | None = Field(default=None, description="Instead of the profile's.")
    max_num_queued_reqs: Count | None = Field(
        default=None, description="vLLM: refuse with 503 when so many wait. Not set: no limit."
    )
    max_concurrent_requests: Count = Field(
        default=128, description="TGI: refuse with 429 when so many are there."
    )
    dev_mode: bool = Field(
        default=False, description="vLLM: serve /sleep, /wake_up, /is_sleeping, /emulator/slowdown."
    )


class OutputLength(Section):
    """Output tokens of a request that brings no true length: log-normal, by its prompt and the seed."""

    median_tokens: float = Field(default=150, gt=0)
    sigma: float = Field(default=0.9, ge=0, le=3)


class Fleet(File):
    """An emulated fleet in one process."""

    kind: Literal["fleet"] | None = None
    host: str = Field(default="127.0.0.1", description="Address of every instance's port.")
    seed: int = Field(default=0, ge=0, description="Decides hidden parameters, noise and output lengths.")
    perturb: bool = Field(
        default=True, description="Scale each engine's hidden parameters by up to 10 %, by seed."
    )
    noise_pct: float = Field(default=1.0, ge=0, le=50, description="Standard deviation of iteration times.")
    output_length: OutputLength = OutputLength()
    nodes: tuple[Node, ...] = Field(min_length=1)
    instances: tuple[EmulatedEngine, ...] = Field(min_length=1)

    def faults(self) -> Iterator[Fault]:
        yield from _repeated("nodes", "name", [node.name for node in self.nodes])
        yield from _repeated("nodes", "plant", [str(node.plant) for node in self.nodes])
        yield from _repeated("instances", "name", [i.name for i in self.instances])
        yield from _repeated("instances", "port", [str(i.port) for i in self.instances])
        places = [f"{node.name}/{index}" for node in self.nodes for index in range(node.gpus)]
        taken: dict[str, str] = {}
        for i, instance in enumerate(self.instances):
            if len({place.partition("/")[0] for place in instance.gpus}) > 1:
                yield Fault(("instances", i, "gpus"), "the GPUs of an instance must be on one node")
            for g, place in enumerate(instance.gpus):
                at = ("instances", i, "gpus", g)
                if place not in places:
                    yield Fault(at, f"there is no GPU {place}", did_you_mean(place, places))
                elif place in taken:
                    yield Fault(at, f"GPU {place} is taken by {taken[place]}", "one engine to a GPU")
                taken[place] = instance.name


def _repeated(section: str, key: str, values: list[str]) -> Iterator[Fault]:
    for value, count in Counter(values).items():
        if count > 1:
            index = len(values) - 1 - values[::-1].index(value)
            yield Fault((section, index, key), f"{value} is there twice")
