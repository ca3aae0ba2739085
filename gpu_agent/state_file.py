"""Shell: what an agent must still know after a crash, in one small file.

    {"token": 17, "restarts": 4, "locked": ["GPU-..."], "caps": {"GPU-...": [700.0, 450.0]}, "caps_epoch": 3,
     "undo": {"plant": null, "site_lock": 1500}}

`locked` names every GPU on which a lock may stand. It is on disk before the first lock is written, so the one
that starts next (agent or watchdog) knows what to free. `caps` has the power cap before ours, and ours.
`undo` says how to free without agent.yaml. The file is replaced by rename, never edited.
The lock file beside it says which process is the agent.

Nothing but the standard library is imported here: whoever frees clocks at start reads this first.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from joulegate.errors import UserError
from joulegate.units import Watts

TRIES = 20  # 50 ms apart: to become the agent of a folder, or to learn who is
PAUSE = 0.05
MAX_BYTES = 64 * 1024
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class CapNote:
    uuid: str
    prior: Watts  # what was set before us
    wanted: Watts


@dataclass(frozen=True, slots=True)
class Undo:
    """How to give a clock back: over NVML, or on the plant of an emulator, to the site's own lock if any."""

    plant: str | None = None
    site_lock: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    token: int = 0  # of the newest lease ever granted
    restarts: int = 0
    locked: frozenset[str] = frozenset()
    caps: tuple[CapNote, ...] = ()
    caps_epoch: int = 0
    undo: Undo | None = None  # None: it takes agent.yaml


class StateFile:
    """`memory` is what is on disk; `undo` goes into whatever is saved."""

    def __init__(self, folder: Path, undo: Undo | None = None) -> None:
        self._path = folder / "agent.json"
        self._undo = undo
        self.memory = read(folder)

    def save(self, memory: Memory) -> None:
        """Raises OSError; then what was on disk before still is."""
        memory = replace(memory, undo=self._undo)
        if memory == self.memory:
            return
        fresh = self._path.with_suffix(".new")
        with open(fresh, "wb", opener=_private) as file:
            file.write(_encoded(memory))
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
        with path.open("rb") as file:
            return _decoded(file.read(MAX_BYTES))
    except FileNotFoundError:
        return Memory()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged, so the last lease is not known",
            f"reset the clocks (nvidia-smi -rgc) and delete {path}",
        ) from error


def _encoded(memory: Memory) -> bytes:
    undo = memory.undo
    document = {
        "token": memory.token,
        "restarts": memory.restarts,
        "locked": sorted(memory.locked),
        "caps": {note.uuid: (note.prior, note.wanted) for note in memory.caps},
        "caps_epoch": memory.caps_epoch,
        "undo": undo and {"plant": undo.plant, "site_lock": undo.site_lock},
    }
    return json.dumps(document).encode()


def _decoded(text: bytes) -> Memory:
    """Raises ValueError, TypeError or AttributeError for what no agent has written."""
    document = json.loads(text)
    caps = document.get("caps", {}).items()
    undo = document.get("undo")
    return Memory(
        token=int(document.get("token", 0)),
        restarts=int(document.get("restarts", 0)),
        locked=frozenset(map(str, document.get("locked", ()))),
        caps=tuple(
            CapNote(uuid, Watts(float(prior)), Watts(float(wanted))) for uuid, (prior, wanted) in caps
        ),
        caps_epoch=int(document.get("caps_epoch", 0)),
        undo=Undo(**undo) if undo is not None else None,
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Be the one agent of `folder`: flock, so it ends with the process however that ends.

    Raises UserError when another agent has it, or others may write there: they could say what is locked.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        file = _private(str(folder / "agent.lock"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "set 'state_dir'") from error
    try:
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & WRITABLE_BY_OTHERS:
            raise UserError(f"{folder} can be written by other users", f"chmod 700 {folder}")
        for _ in range(TRIES):
            if _try_lock(file):
                break
            time.sleep(PAUSE)  # a predecessor may be dying, or a watchdog looking
        else:
            raise UserError(f"another agent uses {folder}", "stop it, or give each its own 'state_dir'")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def claimant(folder: Path) -> int | None:
    """A pidfd of the agent that holds `folder`; None when nobody does, or nobody who has signed."""
    try:
        file = os.open(folder / "agent.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for _ in range(TRIES):
            if not _is_held(file):
                return None
            pidfd = _signed(file)
            if pidfd is not None:
                return pidfd
            time.sleep(PAUSE)  # it has just gone, or has not written its pid yet
        return None
    finally:
        os.close(file)


def _signed(file: int) -> int | None:
    """A pidfd of the process that has written its pid into the lock file and holds it."""
    try:
        pid = int(os.pread(file, 32, 0))
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return None
    # The number may be a predecessor's and in use by somebody else now: the holder has the file open.
    if _has_open(pid, file) and _is_held(file):
        return pidfd
    os.close(pidfd)
    return None


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
