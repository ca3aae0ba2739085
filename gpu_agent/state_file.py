"""Shell: what an agent must still know after a crash, in one small file.

    {"token": 17, "restarts": 4, "locked": ["GPU-..."], "caps": {"GPU-...": [700.0, 450.0]}, "caps_epoch": 3}

`locked` names every GPU on which a lock may stand. It is on disk before the first lock is written, so the one
that starts next (agent or watchdog) knows what to free. `caps` has the power cap before ours, and ours. It is
replaced by rename, never edited.
The lock file beside it says which process is the agent.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from joulegate.errors import UserError
from joulegate.units import Watts

PATIENCE = 20  # tries, 50 ms apart, to become the agent of a folder


@dataclass(frozen=True, slots=True)
class CapNote:
    uuid: str
    prior: Watts  # what was set before us
    wanted: Watts


@dataclass(frozen=True, slots=True)
class Memory:
    token: int = 0  # of the newest lease ever granted
    restarts: int = 0
    locked: frozenset[str] = frozenset()
    caps: tuple[CapNote, ...] = ()
    caps_epoch: int = 0


class _Stored(BaseModel):
    model_config = ConfigDict(extra="ignore")
    token: int = 0
    restarts: int = 0
    locked: list[str] = []
    caps: dict[str, tuple[float, float]] = {}
    caps_epoch: int = 0


class StateFile:
    """`memory` is what is on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "agent.json"
        self.memory = read(folder)

    def save(self, memory: Memory) -> None:
        """Raises OSError; then what was on disk before still is."""
        if memory == self.memory:
            return
        stored = _Stored(
            token=memory.token,
            restarts=memory.restarts,
            locked=sorted(memory.locked),
            caps={note.uuid: (note.prior, note.wanted) for note in memory.caps},
            caps_epoch=memory.caps_epoch,
        )
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(stored.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.memory = memory


def read(folder: Path) -> Memory:
    """What is on disk; a fresh memory if there is nothing. Raises UserError for a file that is damaged."""
    path = folder / "agent.json"
    try:
        stored = _Stored.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Memory()
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged, so the last lease is not known",
            f"reset the clocks (nvidia-smi -rgc) and delete {path}",
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    caps = tuple(CapNote(uuid, Watts(prior), Watts(wanted)) for uuid, (prior, wanted) in stored.caps.items())
    return Memory(stored.token, stored.restarts, frozenset(stored.locked), caps, stored.caps_epoch)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the one agent of `folder`: flock, so it ends with the process however that ends.

    Raises UserError when another agent has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "set 'state_dir'") from error
    try:
        for _ in range(PATIENCE):
            if _try_lock(file):
                break
            time.sleep(0.05)  # a predecessor may be dying, or a watchdog looking
        else:
            raise UserError(f"another agent uses {folder}", "stop it, or give each its own 'state_dir'")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def claimant(folder: Path) -> int | None:
    """A pidfd of the agent that holds `folder`; None when nobody does."""
    try:
        file = os.open(folder / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        while _is_held(file):
            text = os.pread(file, 32, 0)
            try:
                pidfd = os.pidfd_open(int(text))
            except (ProcessLookupError, ValueError):
                continue  # it has just gone, or has not written its pid yet
            # The number may be a predecessor's and in use by somebody else now: the holder has the file open.
            if _has_open(int(text), file) and _is_held(file):
                return pidfd
            os.close(pidfd)
        return None
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(file: int) -> bool:
    if not _try_lock(file):
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _has_open(pid: int, file: int) -> bool:
    wanted = os.fstat(file)
    try:
        return any(_same(entry, wanted) for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _same(path: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), wanted)
    except OSError:
        return False
