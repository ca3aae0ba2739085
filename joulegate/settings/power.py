"""Pure: what the GPUs of a row, a rack or a node may draw together."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from joulegate.settings.base import Fault, LocalPath, Route, Section
from joulegate.settings.fields import Label, Positive, repeated
from joulegate.settings.nearest import did_you_mean

NotNegative = Annotated[float, Field(ge=0)]


class PowerDomain(Section):
    """Whatever hangs on one feed: a datacentre, a row, a rack, a node, a few GPUs."""

    name: Label
    budget_w: Positive = Field(description="For its GPU boards alone: take off what else it feeds.")
    inside: Label | None = Field(default=None, description="The domain that feeds it; null: none does.")
    agents: tuple[Label, ...] = Field(default=(), description="Nodes in it: every GPU their agents report.")
    gpus: tuple[str, ...] = Field(default=(), description="UUIDs of GPUs in it whose node is not.")


class Power(Section):
    """Budgets in watts: kept by lower clocks first, by power caps where those do not do."""

    mode: Literal["advise", "enforce"] = Field(
        default="advise", description="advise: show what would be done; enforce: do it, in every pool."
    )
    domains: tuple[PowerDomain, ...] = Field(default=(), description="The tree, each domain once.")
    emergency_file: LocalPath | None = Field(
        default=None, description="While this file exists every budget is cut to `emergency_pct`."
    )
    emergency_pct: float = Field(
        default=75, gt=0, le=100, description="Of every budget that is left in an emergency."
    )
    trip_s: NotNegative = Field(default=2, description="Above a budget for so long is an emergency too.")
    hold_s: NotNegative = Field(default=300, description="An emergency lasts at least so long.")
    ramp_s: Positive = Field(default=120, description="From the cut budgets back to the whole ones.")
    hot_c: Positive = Field(default=85, description="A GPU this hot gets requests only when no other can.")

    def faults(self) -> Iterator[Fault]:
        names = [domain.name for domain in self.domains]
        yield from repeated("domain", (((*_at(i), "name"), name) for i, name in enumerate(names)))
        yield from repeated("agent", self._listed("agents"))
        yield from repeated("GPU", self._listed("gpus"))
        parents = {domain.name: domain.inside for domain in self.domains}
        for i, domain in enumerate(self.domains):
            if domain.inside is not None and domain.inside not in parents:
                listed = did_you_mean(domain.inside, names) or f"domains: {', '.join(names)}"
                yield Fault((*_at(i), "inside"), f"no domain is called {domain.inside!r}", listed)
            elif _circular(domain.name, parents):
                yield Fault((*_at(i), "inside"), f"{domain.name} would be inside itself")

    def _listed(self, key: str) -> Iterator[tuple[Route, str]]:
        for i, domain in enumerate(self.domains):
            yield from (((*_at(i), key, k), name) for k, name in enumerate(getattr(domain, key)))


def _at(index: int) -> Route:
    return ("domains", index)


def _circular(name: str, parents: Mapping[str, str | None]) -> bool:
    """Whether going up from `name` leads back to it."""
    at = parents[name]
    for _ in parents:
        if at is None or at == name:
            return at == name
        at = parents.get(at)
    return False
