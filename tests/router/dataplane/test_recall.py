"""A request that is taken back before its first byte goes elsewhere; after it, it stays where it is."""

import asyncio
from collections.abc import Callable

import pytest

from router.errors import Resteered, Squashed
from router.ports import Ending
from tests.fakes.edge import Edge, edge, post
from tests.fakes.engine import (
    ROLE,
    STREAM_HEAD,
    FakeEngine,
    answer,
    chunk,
    hangs_after,
    says,
)
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
GOOD = answer(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}')


async def until(condition: Callable[[], object]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never came true")


async def asked(it: Edge) -> bytes:
    return await it.raw(post(ASK, "/v1/chat/completions"))


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD], ids=["nothing came", "a head came"])
async def test_what_is_taken_back_is_answered_by_another(begun: bytes) -> None:
    async with FakeEngine(hangs_after(begun)) as stuck, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(stuck.endpoint("stuck"), good.endpoint("good"), retries=1)
        async with edge(gate) as it:
            asking = asyncio.create_task(asked(it))
            await until(lambda: gate.slots and gate.slots[0].recall and stuck.requests)
            gate.slots[0].recall(Resteered("too late"))  # type: ignore[misc]
            head = await asking
            await until(lambda: not stuck.open_connections)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-joulegate-instance: good" in head
    assert [report.ending for report in gate.reports] == [Ending.RESTEERED, Ending.OK]


async def test_without_another_place_the_client_is_told_when_to_come_again() -> None:
    async with FakeEngine(hangs_after(b"")) as stuck:
        gate = FakeGate(stuck.endpoint())
        async with edge(gate) as it:
            asking = asyncio.create_task(asked(it))
            await until(lambda: gate.slots and gate.slots[0].recall)
            gate.slots[0].recall(Resteered("too late"))  # type: ignore[misc]
            answered = await asking
    assert answered.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answered.lower()


async def test_what_is_squashed_is_not_asked_of_another() -> None:
    async with FakeEngine(hangs_after(b"")) as stuck, FakeEngine(says(GOOD)) as good:
        gate = FakeGate(stuck.endpoint(), good.endpoint(), retries=1)
        async with edge(gate) as it:
            asking = asyncio.create_task(asked(it))
            await until(lambda: gate.slots and gate.slots[0].recall)
            gate.slots[0].recall(Squashed("past its deadline", 3.0))  # type: ignore[misc]
            answered = await asking
    assert answered.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 3\r\n" in answered.lower()
    assert [report.ending for report in gate.reports] == [Ending.SHED]
    assert good.requests == []


async def test_an_answer_that_has_begun_is_left_alone() -> None:
    async with FakeEngine(hangs_after(STREAM_HEAD + chunk(ROLE))) as slow:
        gate = FakeGate(slow.endpoint(), slow.endpoint(), retries=1)
        async with edge(gate) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(post(ASK, "/v1/chat/completions"))
            await reader.readuntil(b"\r\n\r\n")
            gate.slots[0].recall(Resteered("too late"))  # type: ignore[misc]
            await asyncio.sleep(0.05)
            assert len(gate.slots) == 1, "nobody else was asked"
            assert gate.reports == []
            writer.close()
            await until(lambda: gate.reports)
    assert [report.ending for report in gate.reports] == [Ending.CLIENT_LEFT]
