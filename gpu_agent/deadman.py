"""Shell: the thread that gives clocks back when nobody renews.

It does nothing but sleep on the node's lock and make device calls: no imports, no disk, no network. (Telling
the watchdog that all is restored is one send that never waits; log records go to a queue.)
"""

import threading
import time
from math import inf

from gpu_agent.node import Node


class Deadman(threading.Thread):
    def __init__(self, node: Node) -> None:
        super().__init__(name="deadman", daemon=True)
        self._node = node
        self._stopping = False

    def run(self) -> None:
        changed = self._node.changed
        with changed:
            while not self._stopping:
                due = self._node.expire()
                changed.wait(None if due == inf else max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        with self._node.changed:
            self._stopping = True
            self._node.changed.notify_all()
        self.join()
