"""Shell: the seam between the plan and whatever stops and starts an engine."""

from dataclasses import dataclass
from typing import Protocol

from control.lifecycle import Seen


class ActuationFailed(Exception):
    """An engine was not stopped or started; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of one instance. `why`: of Seen.UNKNOWN."""

    seen: Seen
    why: str = ""


class Actuator(Protocol):
    """Stops and starts one instance. Asked for what is so already, `start` and `stop` change nothing."""

    async def look(self) -> Sight:
        """Whether it runs. Never raises."""
        ...

    async def start(self) -> None:
        """Told to start; it may not serve yet. Raises ActuationFailed."""
        ...

    async def stop(self) -> None:
        """Told to stop; it may not have stopped yet. Nobody has a request there. Raises ActuationFailed."""
        ...

    async def close(self) -> None:
        """Close what it has opened itself; the client it was given is not."""
        ...
