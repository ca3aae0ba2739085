"""Pure: a node as last seen through its agent."""

from dataclasses import dataclass, field

from joulegate.units import Seconds
from joulegate.wire import GpuInfo, GpuState


@dataclass(slots=True)
class AgentView:
    """The node as last seen. `seen` is our monotonic clock when the answer arrived."""

    infos: dict[str, GpuInfo] = field(default_factory=dict)
    gpus: dict[str, GpuState] = field(default_factory=dict)
    seen: Seconds = Seconds(float("-inf"))
    lease: int | None = None
    lease_until: Seconds = Seconds(float("-inf"))
    held_until: Seconds = Seconds(float("-inf"))  # by another gateway, as the agent said last
    restarts: int | None = None
    up: bool = False
    problem: str = "not asked yet"

    @property
    def caps(self) -> dict[str, float]:
        """Power caps that budgets have set and that stand, by GPU: watts."""
        return {uuid: info.cap_w for uuid, info in self.infos.items() if info.cap_w is not None}
