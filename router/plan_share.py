"""Pure: what replicas tell each other of the plan: whom the leader keeps out of rotation, and who is missed.

Only the leader stops and starts instances. The others send nothing to those it has fenced, and tell it of
pools in which requests wait that nobody serves.
"""

from collections.abc import Callable, Mapping

from control.lifecycle import Phase

Place = tuple[str, str]  # model, pool


class PlanShare:
    """`phases` and `asks` are what this replica tells; `heard_*` is what the others told last."""

    def __init__(self) -> None:
        self.phases: Mapping[str, Phase] = {}  # by instance; only of who leads
        self.asks: frozenset[Place] = frozenset()
        self.heard_phases: Mapping[str, Phase] = {}
        self.heard_asks: frozenset[Place] = frozenset()
        self.on_news: Callable[[], None] = lambda: None

    def hear(self, phases: Mapping[str, Phase], asks: frozenset[Place]) -> None:
        """Of all other replicas that can be heard."""
        if (phases, asks) != (self.heard_phases, self.heard_asks):
            self.heard_phases, self.heard_asks = phases, asks
            self.on_news()
