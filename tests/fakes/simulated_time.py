"""An event loop whose time passes only while everybody waits: hours in a moment, the same each run."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SimulatedLoop(asyncio.BaseEventLoop):
    """Timers only: there are no sockets, no threads and no processes here."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # where asyncio waits until something happens

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        assert timeout is not None, "everybody waits for ever"
        self._now += timeout
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody is outside."""


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end; its `asyncio.get_running_loop().time` is the simulated time, from 0."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)
