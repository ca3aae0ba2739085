"""Shell: a child process that ends with whoever waits for it, and all that it has started with it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO

NOWHERE = asyncio.subprocess.DEVNULL
PIPE = asyncio.subprocess.PIPE


@contextlib.asynccontextmanager
async def running(
    words: Sequence[str],
    *,
    stdin: int = NOWHERE,
    stdout: int = NOWHERE,
    stderr: int | IO[bytes] = NOWHERE,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`words` as they are, no shell; what still runs at the end is killed. Raises OSError: no such file."""
    process = await asyncio.create_subprocess_exec(
        *words, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
