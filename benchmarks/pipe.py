"""Shell: the least a proxy in Python can be: bytes passed on between two connections, and nothing looked at.

    python -m benchmarks.pipe --port 8080 --engines 8001,8002

What the interpreter, the loop (uvloop, as the gateway's) and the kernel take of a request before any of our
code does. Each client has one engine, in turn.
"""

import argparse
import asyncio
from collections.abc import Sequence
from itertools import cycle
from typing import cast

import uvloop


class End(asyncio.Protocol):
    """One of the two connections of a client."""

    transport: asyncio.Transport
    other: "End | None" = None
    early: bytes = b""  # what a client sent before there was an engine to send it to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is of no class of asyncio

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


async def serve(port: int, engines: Sequence[int]) -> None:
    loop, turn, joining = asyncio.get_running_loop(), cycle(engines), set[asyncio.Task[None]]()

    class Client(End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = loop.create_task(join(self))
            joining.add(task)
            task.add_done_callback(joining.discard)

    async def join(client: End) -> None:
        _, engine = await loop.create_connection(End, "127.0.0.1", next(turn))
        engine.other, client.other = client, engine
        engine.transport.write(client.early)

    server = await loop.create_server(Client, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engines", required=True, help="ports, with commas between them")
    options = parser.parse_args()
    uvloop.run(serve(options.port, [int(port) for port in options.engines.split(",")]))


if __name__ == "__main__":
    main()
