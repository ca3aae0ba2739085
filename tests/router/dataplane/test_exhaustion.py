"""The gateway out of its own means: it says so, and blames no instance."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from router.ports import Ending
from tests.fakes.edge import edge, post
from tests.fakes.engine import FakeEngine, answer, says
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Not one file descriptor is left to open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[0] + 1, hard))
    try:
        while True:
            try:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


async def test_a_gateway_without_descriptors_is_busy_and_recovers() -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint(), retries=1)
        async with edge(gate) as it:
            reader, writer = await it.connect()
            await asyncio.sleep(0.01)  # accepted
            with no_descriptors():
                writer.write(post(ASK, close=False))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                body = await reader.readuntil(b"}}")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert b"gateway_busy" in body
            writer.write(post(ASK))
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await it.settled()
    assert [report.ending for report in gate.reports] == [Ending.REFUSED, Ending.OK]


async def test_many_streams_leave_nothing_behind() -> None:
    async with FakeEngine(says(answer(b"{}"))) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate) as it:
            before = descriptors()

            async def one(number: int) -> None:
                reader, writer = await it.connect()
                writer.write(post(ASK))
                if number % 3 == 0:
                    writer.transport.abort()
                elif number % 3 == 1:
                    writer.close()
                else:
                    await reader.read()
                    writer.close()

            for _ in range(5):
                await asyncio.gather(*map(one, range(60)))
            await asyncio.wait_for(it.settled(), 10)
            it.pool.forget(engine.endpoint())
            async with asyncio.timeout(5):
                while it.server.server_state.connections or engine.open_connections:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            assert descriptors() <= before + 1
    assert gate.in_flight == gate.waiting == 0
