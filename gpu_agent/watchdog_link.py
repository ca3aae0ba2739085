"""Shell: the agent's end of the socket to its watchdog, and the messages on it.

SOCK_SEQPACKET, one JSON object a packet. The first packet carries a pidfd of the agent, so the watchdog can
only ever kill the process that sent it. Each packet states everything the watchdog must know:

    agent    -> {"seq": 7, "deadline": 1234.5, "gpus": ["GPU-..."], "hold": true}
    watchdog -> {"seq": 7, "why": ""}         `why` says what hinders it; empty: it stands ready

`deadline` is CLOCK_MONOTONIC; null: nothing is locked. `hold` false: let go of the driver.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Protocol

import orjson

from gpu_agent.unix_socket import MAX_PACKET
from joulegate.units import Seconds

SULK = 1.0  # seconds for which a watchdog that did not answer is not waited for again
SILENT = "the watchdog does not answer"


class Link(Protocol):
    """What the node asks of the way to its watchdog."""

    problem: str

    def arm(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool = True) -> bool: ...

    def renew(self, deadline: Seconds, gpus: Iterable[str]) -> bool: ...

    def disarm(self) -> None: ...

    def gone(self) -> bool: ...

    def close(self) -> None: ...


class WatchdogLink:
    """Used by one thread at a time."""

    def __init__(self, path: Path, ack_within: Seconds) -> None:
        self._path = path
        self._ack_within = ack_within
        self._socket: socket.socket | None = None
        self._seq = 0
        self._answered = 0  # the newest packet that was
        self._silent_until = -inf
        self.problem = "not connected to the watchdog yet"

    def arm(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool = True) -> bool:
        """Tell the watchdog; True once it has confirmed. `problem` says why not."""
        if time.monotonic() < self._silent_until:
            self.problem = SILENT
            return False
        if not self._connected():
            return False
        try:
            self._send(deadline, gpus, hold)
            while self._answered < self._seq:
                self._receive()
        except BlockingIOError:  # late is not gone: the socket stays, and with it what we tell it next
            self.problem = SILENT
            self._silent_until = time.monotonic() + SULK
        except OSError as error:
            self.problem = f"the watchdog has gone: {error}"
            self.close()
        return not self.problem

    def renew(self, deadline: Seconds, gpus: Iterable[str]) -> bool:
        """Move a deadline on without waiting, where the one before was confirmed; False: `arm` is needed.

        So a watchdog that has stopped is noticed one renewal later.
        """
        if self.gone() or self._answered < self._seq or self.problem:
            return False
        try:
            self._send(deadline, gpus, True, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def disarm(self) -> None:
        """Nothing is locked any more. Does not wait: the dead-man thread uses it."""
        if self._socket is None:
            return
        try:
            self._send(None, (), True, socket.MSG_DONTWAIT)
        except OSError as error:
            self.problem = f"the watchdog does not read: {error}"

    def gone(self) -> bool:
        """Whether the watchdog has closed its end. Takes in its answers so far."""
        if self._socket is None:
            return True
        try:
            while True:
                self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> bool:
        if not self.gone():
            return True
        self.close()
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The kernel's own time limit: one call for each packet, where Python's needs a poll before it.
        limit = struct.pack("ll", int(self._ack_within), int(self._ack_within % 1.0 * 1e6))
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            fresh.connect(str(self._path))
            pidfd = os.pidfd_open(os.getpid())
            try:
                socket.send_fds(fresh, [self._packet(None, (), True)], [pidfd])
            finally:
                os.close(pidfd)
        except OSError as error:
            fresh.close()
            self.problem = f"no watchdog at {self._path}: {error}"
            return False
        self._socket = fresh
        return True

    def _send(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool, flags: int = 0) -> None:
        assert self._socket is not None
        self._socket.send(self._packet(deadline, gpus, hold), flags)

    def _packet(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool) -> bytes:
        self._seq += 1
        return orjson.dumps({"seq": self._seq, "deadline": deadline, "gpus": sorted(gpus), "hold": hold})

    def _receive(self, flags: int = 0) -> None:
        """One answer: `problem` is what hinders the watchdog, empty if nothing does. Raises OSError."""
        assert self._socket is not None
        packet = self._socket.recv(MAX_PACKET, flags)
        if not packet:
            raise ConnectionResetError("it has gone")
        answer = orjson.loads(packet)
        self._answered, self.problem = answer["seq"], str(answer["why"])
