"""Shell: who computes on a GPU."""

from collections.abc import Collection, Iterable
from pathlib import Path


def foreign(pids: Iterable[int], own: Collection[str]) -> str | None:
    """Names the first process whose command is not in `own`; None when all are, or `own` is empty."""
    if not own:
        return None
    for pid in pids:
        command = command_of(pid)
        if command not in own:
            return f"foreign_process: {pid} ({command or 'not visible from here'})"
    return None


def command_of(pid: int) -> str:
    """As in /proc/PID/comm; empty when it is not visible from here."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
