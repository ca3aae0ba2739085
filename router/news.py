"""Shell: loops that go on after a while, or at once when there is news."""

import asyncio
import contextlib


async def news(event: asyncio.Event, seconds: float) -> None:
    """Until `event` is set, for `seconds` at most; it is cleared.

    Not by `asyncio.wait_for`, which may lose a cancellation that comes with the event.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
