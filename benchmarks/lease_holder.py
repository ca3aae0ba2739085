"""Shell: a stand-in for a gateway: holds an agent's lease and changes ceilings four times a second.

    python benchmarks/lease_holder.py SOCKET TTL_S DIARY UUID...

Its diary is two doubles (CLOCK_MONOTONIC): when it last sent a sync, and when it sent the last one that the
agent granted. It leaves for good when the agent refuses it; SIGUSR1 cuts its connection and it falls silent.
Standard library only, so that starting it costs little.
"""

import http.client
import json
import mmap
import random
import signal
import socket
import struct
import sys
import time
from pathlib import Path

PERIOD = 0.25
CLOCKS = (600, 900, 1200, 1500)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(connection: http.client.HTTPConnection, path: str, message: object) -> tuple[int, dict[str, object]]:
    """POST `message` as JSON, or GET when it is None: (status, decoded body)."""
    body = None if message is None else json.dumps(message)
    headers = {} if message is None else {"content-type": "application/json"}
    connection.request("GET" if message is None else "POST", path, body, headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def hold(path: str, ttl: float, diary: mmap.mmap, gpus: list[str]) -> None:
    connection: http.client.HTTPConnection | None = None
    lease: object = None
    cut = False

    def on_cut(_signal: int, _frame: object) -> None:
        nonlocal cut
        cut = True

    signal.signal(signal.SIGUSR1, on_cut)
    while not cut:
        connection = connection or UnixConnection(path, ttl)
        targets = {gpu: random.choice(CLOCKS) for gpu in gpus}
        message = {"holder": "stand-in", "lease": lease, "ttl_s": ttl, "targets": targets, "reason": "kills"}
        sent = time.monotonic()
        diary[:8] = struct.pack("d", sent)
        try:
            status, reply = call(connection, "/v1/sync", message)
        except (OSError, http.client.HTTPException):
            connection = None  # the agent is away: try again, with what we hold
        else:
            if status == 409 and lease is not None:
                return
            if status == 200:
                diary[8:16] = struct.pack("d", sent)
                lease = reply["lease"]
        time.sleep(PERIOD * random.uniform(0.5, 1.5))
    if connection is not None:
        connection.close()
    signal.pause()


def run() -> None:
    socket_path, ttl, diary, *gpus = sys.argv[1:]
    with Path(diary).open("r+b") as file:
        hold(socket_path, float(ttl), mmap.mmap(file.fileno(), 16), gpus)


if __name__ == "__main__":
    run()
