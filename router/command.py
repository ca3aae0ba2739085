"""Shell: an operator's programs as an actuator: an argument list each, no shell, and a time limit.

They see PATH, HOME, LANG and the variables named in the settings, never the gateway's secrets. What they say
goes nowhere but for the end of their stderr, which explains a failure. Whether an engine runs is not theirs
to say: its health is asked for.
"""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from control.lifecycle import Seen
from router.actuators import ActuationFailed, Sight
from router.child import running
from router.http_client import ControlClient, Unreachable

LOOK_WITHIN = 2.0  # seconds
SILENT = 3  # looks in a row without an answer: it has stopped
ALWAYS = ("PATH", "HOME", "LANG")
LAST_WORDS = 400  # bytes of stderr that are told


class Command:
    """One engine. `client` reaches it; `path` is its health."""

    def __init__(
        self,
        client: ControlClient,
        path: str,
        start: Sequence[str],
        stop: Sequence[str],
        patience: tuple[float, float],
        environment: Mapping[str, str],
    ) -> None:
        """`patience`: seconds that starting and stopping may take."""
        self._client = client
        self._path = path
        self._start = start
        self._stop = stop
        self._patience = patience
        self._environment = environment
        self._silent = 0

    async def look(self) -> Sight:
        try:
            reply = await self._client.get(self._path, LOOK_WITHIN)
        except Unreachable as error:
            self._silent += 1
            return Sight(Seen.STOPPED if self._silent >= SILENT else Seen.UNKNOWN, str(error))
        self._silent = 0
        if reply.status < 500:
            return Sight(Seen.RUNNING)
        return Sight(Seen.UNKNOWN, f"{self._path} answered {reply.status}")

    async def start(self) -> None:
        await run(self._start, self._patience[0], self._environment)

    async def stop(self) -> None:
        await run(self._stop, self._patience[1], self._environment)

    async def close(self) -> None:
        return None


def environment(names: Sequence[str]) -> dict[str, str]:
    """What a program of the operator's gets to see."""
    return {name: os.environ[name] for name in (*ALWAYS, *names) if name in os.environ}


async def run(words: Sequence[str], limit: float, variables: Mapping[str, str]) -> None:
    """Run a program to its end. Raises ActuationFailed unless it ends with 0 within `limit` seconds."""
    with tempfile.TemporaryFile() as said:
        try:
            # no pipe for what it says: what it leaves running may hold it open
            async with running(words, stderr=said, env=variables) as process:
                status = await asyncio.wait_for(process.wait(), limit)
        except TimeoutError as error:
            raise ActuationFailed(f"{words[0]} did not end in {limit:g} s") from error
        except OSError as error:
            raise ActuationFailed(f"{words[0]}: {error.strerror}") from error
        if status != 0:
            raise ActuationFailed(f"{words[0]} ended with {status}: {_last_words(said)}")


def _last_words(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - LAST_WORDS))
    return said.read().decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
