"""A server in front of another: it hands requests on, or answers some of them as a test says.

It runs in a thread of its own, because what it stands between are real processes and the test itself waits.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

from tests.fakes.engine import Line, Received, Script

T = TypeVar("T")
Address = tuple[str, int] | Path  # TCP, or a Unix socket


class Background:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30.0)

    def call(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)

    def close(self) -> None:
        self.run(_settled())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _settled() -> None:
    """A connection accepted a moment ago has a few rounds of the loop to begin, and with that to end."""
    for _ in range(10):
        await asyncio.sleep(0)


class Front:
    """`rules`: what is done to requests whose path begins so; others go to `target`."""

    def __init__(self, background: Background, listen: Address, target: Address) -> None:
        self.rules: dict[str, Script] = {}
        self.listen = listen
        self.target = target
        self._background = background
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._background.run(self._open())

    def shut(self) -> None:
        """Refuse connections and break those there are, as a process that was killed."""
        self._background.run(self._shut())

    @contextlib.contextmanager
    def doing(self, path: str, script: Script) -> Iterator[None]:
        self.rules[path] = script
        try:
            yield
        finally:
            del self.rules[path]

    async def forward(self, received: Received) -> bytes:
        """The whole answer of the target."""
        reader, writer = await self._connect()
        writer.write(alone(received))
        answer = await reader.read()
        writer.close()
        return answer

    async def _open(self) -> None:
        if isinstance(self.listen, Path):
            self._server = await asyncio.start_unix_server(self._accept, str(self.listen))
        else:
            self._server = await asyncio.start_server(self._accept, *self.listen)

    async def _shut(self) -> None:
        if self._server is None:
            return
        for listener in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.sleep(0)  # a server that closes while somebody is let in forgets to close his socket
        self._server.close()
        self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if isinstance(self.listen, Path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.listen)  # noqa: PTH108 - a socket, not a file

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(str(self.target))
        return await asyncio.open_connection(*self.target)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        line = Line(reader, writer, 0)
        if self._server is None:  # shut between the connection and its first step
            line.reset()
        try:
            while not writer.is_closing():
                received = await line.request()
                path = received.head.split(b" ", 2)[1].decode()
                script = next((rule for start, rule in self.rules.items() if path.startswith(start)), None)
                await (script or self.pass_on)(line, received)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            if not writer.is_closing():
                line.reset()

    async def pass_on(self, line: Line, received: Received) -> None:
        """To the target and back, as it comes; one request a connection. Either side's end is the other's."""
        reader, writer = await self._connect()
        left = asyncio.create_task(line.closed())
        try:
            writer.write(alone(received))
            while True:
                read = asyncio.create_task(reader.read(65536))
                await asyncio.wait({read, left}, return_when=asyncio.FIRST_COMPLETED)
                if not read.done():
                    read.cancel()
                    break
                if not read.result():
                    break
                await line.send(read.result())
        finally:
            left.cancel()
            writer.close()
            line.writer.close()


def alone(received: Received) -> bytes:
    """The request as the only one on its connection."""
    lines = [one for one in received.head.split(b"\r\n") if not one.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"connection: close"]) + b"\r\n\r\n" + received.body
