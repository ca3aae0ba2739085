"""A coroutine steps alike in a task and in a Stepper; only the Stepper goes on at once."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.stepper import Signal, Stepper


class Ended:
    """How a coroutine ended, once."""

    def __init__(self) -> None:
        self.times = 0
        self.error: BaseException | None = None

    def __call__(self, stepper: Stepper, error: BaseException | None) -> None:
        self.times += 1
        self.error = error


async def test_it_goes_on_within_the_call_that_fires() -> None:
    loop, ended, seen = asyncio.get_running_loop(), Ended(), list[str]()
    signal = Signal(loop)

    async def work() -> None:
        seen.append("begun")
        await signal
        seen.append("gone on")

    Stepper(work(), loop, ended).start()
    assert seen == ["begun"]
    signal.fire()
    assert seen == ["begun", "gone on"]
    signal.fire()
    assert (ended.times, ended.error) == (1, None)


async def test_a_task_waits_for_a_signal_too() -> None:
    loop = asyncio.get_running_loop()
    signal = Signal(loop)

    async def work() -> str:
        await signal
        return "done"

    task = loop.create_task(work())
    await asyncio.sleep(0)
    signal.fire()
    assert not task.done()
    assert await task == "done"


async def test_a_task_that_waits_for_a_signal_can_be_cancelled() -> None:
    loop = asyncio.get_running_loop()
    signal = Signal(loop)

    async def work() -> None:
        await signal

    task = loop.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    signal.fire()


async def test_what_it_raises_is_told() -> None:
    ended = Ended()

    async def work() -> None:
        raise ValueError("bad")

    Stepper(work(), asyncio.get_running_loop(), ended).start()
    assert isinstance(ended.error, ValueError)


async def test_cancelled_before_it_began_it_never_begins() -> None:
    ended, seen = Ended(), list[str]()

    async def work() -> None:
        seen.append("begun")

    stepper = Stepper(work(), asyncio.get_running_loop(), ended)
    stepper.cancel()
    stepper.start()
    assert isinstance(ended.error, asyncio.CancelledError)
    assert not seen


class Waiter:
    """Waits for a signal, a future and a round of the loop in turn; what became of it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.seen: list[str] = []
        self.over = False
        self.signal = Signal(self.loop)
        self.future = self.loop.create_future()

    async def work(self) -> None:
        for turn in range(6):
            try:
                await self.wait(turn % 3)
                self.seen.append(f"{turn} came")
            except asyncio.CancelledError:
                self.seen.append(f"{turn} cancelled")
                if turn > 3:
                    raise

    async def wait(self, what: int) -> None:
        if what == 0:
            self.signal = Signal(self.loop)
            await self.signal
        elif what == 1:
            self.future = self.loop.create_future()
            await self.future
        else:
            await asyncio.sleep(0)

    def happen(self, event: str, cancel: Callable[[], object]) -> None:
        if event in ("cancel", "both"):
            cancel()
        if event in ("signal", "both"):
            self.signal.fire()
        elif event == "future" and not self.future.done():
            self.future.set_result(None)

    def ended(self, error: BaseException | None) -> None:
        self.seen.append("end" if error is None else type(error).__name__)
        self.over = True

    def task_ended(self, task: "asyncio.Task[None]") -> None:
        self.ended(asyncio.CancelledError() if task.cancelled() else task.exception())


async def trace(events: list[str], stepped: bool) -> list[str]:
    """What the coroutine makes of `events`, run one way or the other."""
    waiter = Waiter()
    cancel: Callable[[], object]
    if stepped:
        stepper = Stepper(waiter.work(), waiter.loop, lambda _, error: waiter.ended(error))
        stepper.start()
        cancel = stepper.cancel
    else:
        task = waiter.loop.create_task(waiter.work())
        task.add_done_callback(waiter.task_ended)
        cancel = task.cancel
    await rounds()
    for event in events:
        waiter.happen(event, cancel)
        await rounds()
    while not waiter.over:
        cancel()
        await rounds()
    return waiter.seen


async def rounds() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


EVENTS = st.lists(st.sampled_from(["signal", "future", "cancel", "both"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
async def test_a_stepper_does_what_a_task_does(events: list[str]) -> None:
    assert await trace(events, stepped=True) == await trace(events, stepped=False)
