"""Shell: runs one coroutine without a task.

    Stepper(coroutine, loop, over).start()

A task takes every step in a later round of the event loop. A Stepper takes the first one at once, and goes
on within the very call that brings what it waited for (`Signal.fire`): a request that finds a place and a
kept connection is read, placed and sent in the call that read it from its socket. Two rules follow. Whoever
fires a signal does so last; and code that runs inside a parser, or inside another request's step, starts a
Stepper in a later round (`loop.call_soon`).

The coroutine cannot tell the difference, but that `asyncio.current_task` does not know it: what needs a task
(a new connection, with its timeout) is awaited as one. Being cancelled is an exception at its await, as ever.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context


class Signal:
    """What one coroutine waits for, fired once. A Stepper goes on at once, a task in the next round.

    To a task it looks like a future: asyncio asks for no more than these methods.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_callback",
        "_cancelled",
        "_context",
        "_loop",
        "fired",
        "stepper",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.fired = False
        self.stepper: Stepper | None = None  # who waits, if it is one
        self._loop = loop
        self._callback: Callable[[Signal], object] | None = None  # of the task that waits
        self._cancelled = False
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator["Signal", None, None]:
        if not self.fired:
            self._asyncio_future_blocking = True
            yield self

    def fire(self) -> None:
        """What was waited for has come. Returns when the Stepper waits for something else."""
        if self.fired:
            return
        self.fired = True
        if self.stepper is not None:
            self.stepper.go_on(self)
        elif self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)

    # the task's side

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[["Signal"], object], *, context: Context) -> None:
        self._callback, self._context = callback, context

    def cancel(self, msg: object = None) -> bool:
        if self.fired:
            return False
        self._cancelled = True
        self.fire()
        return True

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError


Waited = Signal | asyncio.Future[object] | None
Step = Coroutine[Waited, None, None]


class Stepper:
    """One coroutine from its first step to its end. `over` is told how it ended: None, or what it raised."""

    __slots__ = ("_cancelled", "_coroutine", "_loop", "_over", "_waits")

    def __init__(
        self,
        coroutine: Step,
        loop: asyncio.AbstractEventLoop,
        over: Callable[["Stepper", BaseException | None], None],
    ) -> None:
        self._coroutine: Step | None = coroutine
        self._loop = loop
        self._over = over
        self._waits: Waited = None
        self._cancelled = False

    def start(self) -> None:
        """Take the first step, here and now."""
        self._step()

    def cancel(self, msg: object = None) -> None:
        """Raise CancelledError where the coroutine waits, in a later round of the loop; once it waits."""
        if self._coroutine is None:
            return
        self._cancelled = True
        waits = self._waits
        if isinstance(waits, Signal):
            self._loop.call_soon(self.go_on, waits)
        elif waits is not None:
            waits.cancel()  # if it is done already, it is about to say so

    def go_on(self, waited: Waited) -> None:
        """What the coroutine waited for has come; anything else is old news."""
        if waited is self._waits and waited is not None:
            self._step()

    def _step(self) -> None:
        coroutine = self._coroutine
        if coroutine is None:
            return
        self._waits = None
        try:
            if self._cancelled:
                self._cancelled = False
                waits = coroutine.throw(asyncio.CancelledError())
            else:
                waits = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
            self._over(self, None)
            return
        except BaseException as error:
            self._coroutine = None
            self._over(self, error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise  # not ours to keep: KeyboardInterrupt, SystemExit
            return
        self._wait_for(waits)

    def _wait_for(self, waits: Waited) -> None:
        if waits is None:  # asyncio.sleep(0)
            waits = Signal(self._loop)
            self._loop.call_soon(waits.fire)
        self._waits = waits
        waits._asyncio_future_blocking = False
        if isinstance(waits, Signal):
            waits.stepper = self
        else:
            waits.add_done_callback(self.go_on)
        if self._cancelled:  # while it ran
            self.cancel()
