"""Shell: power caps: a budget's backstop, which fails closed.

A cap does not end with a lease, an agent or a gateway: it is noted on disk before it is set, set again when
it is found changed (a driver reload, another tool), lifted only by a request of the same or a newer epoch.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gpu_agent.device import DeviceError, Driver, Inventory
from gpu_agent.managed import Cause
from gpu_agent.state_file import CapNote, Memory, StateFile
from joulegate.units import Watts

log = logging.getLogger(__name__)
audit = logging.getLogger("joulegate.audit")
TOLERANCE = Watts(1.0)  # drivers round to whole watts


class CapRefused(Exception):
    """Nothing was set: an old epoch, a GPU without caps, a disk that takes no note."""


@dataclass(frozen=True, slots=True)
class Cap:
    """One GPU's cap as it is."""

    set: Watts | None  # read back; None: cannot be read
    wanted: Watts | None  # None: not ours
    fault: str | None = None


class CapKeeper:
    """Used under the node's lock. `memory` None: this agent only watches."""

    def __init__(self, driver: Driver, gpus: Iterable[Inventory], memory: StateFile | None) -> None:
        self._driver = driver
        self._ranges = {gpu.uuid: gpu.cap_range for gpu in gpus}
        self._memory = memory

    @property
    def epoch(self) -> int:
        return self._memory.memory.caps_epoch if self._memory else 0

    def ask(self, caps: Mapping[str, Watts | None], epoch: int, cause: Cause) -> dict[str, Cap]:
        """Set each cap, clamped to what the GPU takes; None gives back the one before. Raises CapRefused."""
        if self._memory is None:
            raise CapRefused("allow_writes is false: this agent only watches")
        if epoch < self.epoch:
            raise CapRefused(f"epoch {epoch} is older than {self.epoch}")
        notes = {note.uuid: note for note in self._memory.memory.caps}
        lifted = [notes.pop(uuid) for uuid, cap in caps.items() if cap is None and uuid in notes]
        for uuid, cap in caps.items():
            if cap is not None:
                notes[uuid] = self._note(uuid, cap, notes.get(uuid))
        self._save(replace(self._memory.memory, caps=tuple(notes.values()), caps_epoch=epoch))
        for note in lifted:
            self._set(note.uuid, note.prior, cause)
        self.uphold(cause)
        return {uuid: self.state(uuid) for uuid in caps}

    @property
    def standing(self) -> Mapping[str, Watts]:
        """What budgets have asked for, by GPU."""
        return {note.uuid: note.wanted for note in self._memory.memory.caps} if self._memory else {}

    def uphold(self, cause: Cause) -> None:
        """Set again what is not as it was asked for."""
        for note in self._memory.memory.caps if self._memory else ():
            state = self.state(note.uuid)
            if state.set is None or abs(state.set - note.wanted) > TOLERANCE:
                self._set(note.uuid, note.wanted, cause)

    def state(self, uuid: str) -> Cap:
        notes = self._memory.memory.caps if self._memory else ()
        wanted = next((note.wanted for note in notes if note.uuid == uuid), None)
        try:
            found = self._driver.cap(uuid)
        except DeviceError as error:
            return Cap(None, wanted, str(error))
        differs = wanted is not None and abs(found - wanted) > TOLERANCE
        return Cap(found, wanted, "the GPU has another cap than asked for" if differs else None)

    def _note(self, uuid: str, cap: Watts, earlier: CapNote | None) -> CapNote:
        limits = self._ranges.get(uuid)
        if limits is None:
            raise CapRefused(f"{uuid} has no power cap")
        wanted = max(limits[0], min(limits[1], cap))
        if earlier is not None:
            return replace(earlier, wanted=wanted)
        try:
            return CapNote(uuid, self._driver.cap(uuid), wanted)
        except DeviceError as error:
            raise CapRefused(f"{uuid}: its cap cannot be read, so not given back later: {error}") from error

    def _set(self, uuid: str, cap: Watts, cause: Cause) -> None:
        try:
            before = self._driver.cap(uuid)
            self._driver.set_cap(uuid, cap)
        except DeviceError as error:
            log.error("power cap not set", extra={"gpu": uuid, "watts": cap, "why": str(error)})
            return
        fields = {"gpu": uuid, "before": before, "after": cap, "who": cause.who, "why": cause.why}
        audit.info("power cap", extra=fields)

    def _save(self, memory: Memory) -> None:
        assert self._memory is not None
        try:
            self._memory.save(memory)
        except OSError as error:
            raise CapRefused(f"the state file cannot be written: {error.strerror or error}") from error
