"""Pure: agent.yaml: one node's agent and its watchdog, which read the same file."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from joulegate.settings.base import Fault, File, InputFile, LocalPath, Section, one_of
from joulegate.wire import Name, Uuid

Scope = Literal["read", "boost", "clocks", "caps"]
Mhz = Annotated[int, Field(ge=1, le=10_000)]
Command = Annotated[str, Field(min_length=1, max_length=64)]


class NvmlDevice(Section):
    """NVIDIA GPUs through the driver's own library; needs `pip install '.[nvml]'` in the checkout."""

    kind: Literal["nvml"]
    gpus: tuple[Uuid, ...] = Field(default=(), description="UUIDs to manage; empty: every GPU of the node.")


class EmulatedDevice(Section):
    """GPUs of a plant file, as `joulegate emulate` makes them."""

    kind: Literal["emulated"]
    plant: LocalPath = Field(description="The plant file.")
    gpus: tuple[Uuid, ...] = Field(default=(), description="UUIDs to manage; empty: every GPU of the plant.")


class ZeusdDevice(Section):
    """NVIDIA GPUs read through NVML and set through zeusd, which has the rights."""

    kind: Literal["zeusd"]
    socket: LocalPath = Field(default=Path("/run/zeusd/zeusd.sock"), description="zeusd's Unix socket.")
    token: SecretStr | None = Field(default=None, description="JWT with the scope gpu-control.")
    token_file: InputFile | None = Field(default=None, description="A file that holds it.")
    gpus: tuple[Uuid, ...] = Field(default=(), description="UUIDs to manage; empty: every GPU of the node.")

    def faults(self) -> Iterator[Fault]:
        yield from one_of(self, "token", "token_file")


Device = Annotated[NvmlDevice | EmulatedDevice | ZeusdDevice, Field(discriminator="kind")]


class Clocks(Section):
    """Bounds that no gateway can leave."""

    min_mhz: Mhz | None = Field(
        default=None, description="Lowest ceiling a gateway may set; none: the GPU's lowest."
    )
    max_mhz: Mhz | None = Field(
        default=None, description="Highest ceiling that is set; none: the GPU's highest."
    )
    site_lock_mhz: Mhz | None = Field(
        default=None,
        description="Ceiling to return to when no lease is live, and never to exceed; none: driver default.",
    )
    dwell_s: float = Field(
        default=1.0, ge=1.0, le=600.0, description="Between a change and the next lowering."
    )
    tolerance_mhz: int = Field(
        default=30, ge=0, le=500, description="How far above its ceiling a GPU may run."
    )
    settle_ms: float = Field(
        default=250.0, ge=0.0, le=5000.0, description="From a clock write to judging its effect."
    )
    pause_s: float = Field(
        default=30.0, ge=1.0, le=3600.0, description="Hands off a GPU that did not obey, so long."
    )

    def faults(self) -> Iterator[Fault]:
        if self.min_mhz and self.max_mhz and self.min_mhz > self.max_mhz:
            yield Fault(("min_mhz",), f"is above max_mhz ({self.max_mhz})")
        if self.min_mhz and self.site_lock_mhz and self.min_mhz > self.site_lock_mhz:
            yield Fault(("min_mhz",), f"is above site_lock_mhz ({self.site_lock_mhz})")


class Token(Section):
    """One client of the agent and what it may do."""

    name: Name
    token: SecretStr | None = Field(default=None, description="The bearer token; better in a file.")
    token_file: InputFile | None = Field(default=None, description="A file that holds the bearer token.")
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("read", "boost", "clocks")
    gpus: tuple[Uuid, ...] = Field(default=(), description="GPUs it may touch; empty: all.")

    def faults(self) -> Iterator[Fault]:
        yield from one_of(self, "token", "token_file")
        if self.token is None and self.token_file is None:
            yield Fault(("name",), "has no token", "add 'token_file'")


class Tls(Section):
    cert_file: InputFile
    key_file: InputFile
    client_ca_file: InputFile | None = Field(
        default=None, description="Clients must show a certificate of this authority."
    )


class Listen(Section):
    """Where the agent answers. One of `unix` and `host`."""

    unix: LocalPath | None = Field(default=None, description="Path of a Unix socket.")
    unix_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = Field(default="0660", description="Its mode.")
    unix_group: str | None = Field(default=None, description="Its group; none: the agent's own.")
    host: str | None = Field(
        default=None, description="IP address to listen on; not loopback: tokens or mTLS needed."
    )
    port: int = Field(default=9460, ge=0, le=65_535, description="0: any free one; it is logged.")
    tokens: tuple[Token, ...] = Field(
        default=(), description="Who may ask for what; empty: everybody who can connect."
    )
    tls: Tls | None = None

    @property
    def loopback(self) -> bool:
        return self.host is None or ip_address(self.host).is_loopback

    def faults(self) -> Iterator[Fault]:
        if (self.unix is None) == (self.host is None):
            yield Fault((), "needs exactly one of 'unix' and 'host'", "unix: /run/joulegate/agent.sock")
        if self.host is not None and not _is_address(self.host):
            yield Fault(("host",), f"{self.host!r} is not an IP address", "127.0.0.1")
        elif not self.loopback and not self.tokens and not (self.tls and self.tls.client_ca_file):
            yield Fault(
                ("host",),
                "anybody on the network could set clocks",
                "add 'tokens' or 'tls.client_ca_file', or listen on 127.0.0.1",
            )
        elif not self.loopback and self.tokens and self.tls is None:
            yield Fault(("host",), "the token would cross the network in the clear", "add 'tls'")
        names = [token.name for token in self.tokens]
        for i, name in enumerate(names):
            if name in names[:i]:
                yield Fault(("tokens", i, "name"), f"{name!r} is given twice")


class Watchdog(Section):
    socket: LocalPath = Field(
        default=Path("/run/joulegate/watchdog.sock"), description="Where agent and watchdog meet."
    )
    ack_ms: float = Field(
        default=250.0,
        ge=10.0,
        le=2000.0,
        description="Longest wait for it; then clocks go up and stay there.",
    )
    grace_ms: float = Field(
        default=200.0, ge=10.0, le=5000.0, description="What the agent may be late before it is killed."
    )


class AgentSettings(File):
    """One node: its GPUs, who may ask for clocks, and what is never allowed."""

    kind: Literal["agent"] | None = Field(default=None, description="What the file configures.")
    node: Name | None = Field(default=None, description="Name of the node; none: the host's name.")
    device: Device
    allow_writes: bool = Field(default=False, description="false: watch only, set nothing.")
    clocks: Clocks = Field(default_factory=Clocks)
    own_processes: tuple[Command, ...] = Field(
        default=(),
        description="Commands that may compute on the GPUs (names as in /proc/PID/comm); a GPU with any "
        "other is only watched. Empty: any.",
    )
    restore_jitter_ms: float = Field(
        default=300.0, ge=0.0, le=10_000.0, description="Clocks go back up to so long after a lease ran out."
    )
    listen: Listen = Field(default_factory=lambda: Listen(unix=Path("/run/joulegate/agent.sock")))
    watchdog: Watchdog = Field(default_factory=Watchdog)
    state_dir: LocalPath = Field(
        default=Path("/var/lib/joulegate"),
        description="Where the lease counter and the list of locked GPUs are kept.",
    )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
