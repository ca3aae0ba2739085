"""Shell: what of the node is on disk: the last token, and the GPUs on which a lock may stand."""

import logging
from collections.abc import Collection
from dataclasses import replace

from gpu_agent.state_file import Memory, StateFile

log = logging.getLogger(__name__)


class NoLease(Exception):
    """No lease is granted: the disk does not take its token, or the agent stops."""


class Ledger:
    """Used under the node's lock. `file` None: this agent only watches, and nothing is kept."""

    def __init__(self, file: StateFile | None) -> None:
        self._file = file
        self.token = file.memory.token if file else 0  # of the newest lease
        self.watches_only = file is None

    @property
    def restarts(self) -> int:
        return self._file.memory.restarts if self._file else 0

    @property
    def locked(self) -> frozenset[str]:
        return self._file.memory.locked if self._file else frozenset()

    def grant(self, token: int) -> None:
        """Before a lease counts. Raises NoLease."""
        if self._file is not None:
            self._save(replace(self._file.memory, token=token))
        self.token = token

    def lock(self, gpus: frozenset[str]) -> None:
        """Before any of them is lowered. Raises NoLease."""
        if self._file is not None and not gpus <= self.locked:
            self._save(replace(self._file.memory, locked=self.locked | gpus))

    def forget(self, gpus: Collection[str]) -> None:
        """Nothing is locked on these any more; others, lost ones, may come back locked."""
        if self._file is not None and not self.locked.isdisjoint(gpus):
            try:
                self._save(replace(self._file.memory, locked=self.locked.difference(gpus)))
            except NoLease as error:
                log.warning("state not saved", extra={"why": str(error)})

    def restarted(self) -> None:
        """Count this start. Where that fails no lease will be granted either; watching goes on."""
        if self._file is not None:
            try:
                self._save(replace(self._file.memory, restarts=self.restarts + 1))
            except NoLease as error:
                log.error("state not saved", extra={"why": str(error)})

    def _save(self, memory: Memory) -> None:
        assert self._file is not None
        try:
            self._file.save(memory)
        except OSError as error:
            raise NoLease(f"the state file cannot be written: {error.strerror or error}") from error
