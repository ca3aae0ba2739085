"""A real redis-server of a test's own, in memory, on loopback."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from simulator.children import Child, free_ports


class RedisServer(Child):
    """Started again it has forgotten everything, at the same address."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
        super().__init__(["redis-server", *options], folder / "redis.log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        super().start()
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("redis-server does not answer")

    def command(self, *words: str) -> bytes:
        """The first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10.0) as line:
            line.sendall(" ".join(words).encode() + b"\r\n")
            return line.makefile("rb").readline()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its URL; it is gone on the way out."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()
