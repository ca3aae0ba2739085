"""Shell: processes under measurement: start, wait until they answer, what their trees cost, stop."""

import http.client
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from simulator.children import Child

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LOOK_EVERY = 0.2  # seconds between two looks whether an agent was ended


class DidNotStart(Exception):
    """A process under measurement ended or never answered; the message has the end of its log."""


@contextmanager
def running(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    """The process and, at the end, none of its group left."""
    child = Child(argv, log, environment=environment)
    child.start()
    try:
        yield child
    finally:
        child.stop()


@contextmanager
def kept(argv: Sequence[str], log: Path) -> Iterator[Child]:
    """As `running`, and revived: a run of an hour would go on without clocks once its agent was ended."""
    ending = threading.Event()
    with running(argv, log) as child:

        def keep() -> None:
            while not ending.wait(LOOK_EVERY):
                child.revive()

        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield child
        finally:
            ending.set()
            keeper.join()


def wait_until_ready(process: Child, port: int, path: str, log: Path, timeout_s: float = 60.0) -> None:
    """Until GET path answers 200. Raises DidNotStart."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.alive:
        if answers(port, path):
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise DidNotStart(f"{process.argv!r} did not answer {path} on port {port}:\n{tail}")


def answers(port: int, path: str) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def tree(root: int) -> list[int]:
    """The process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children.get(pid, []))
    return found


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/pid/stat from the state on (the command before it may hold spaces); [] if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def cpu_seconds(root: int) -> float:
    """User and system time of the whole tree, reaped children included."""
    ticks = 0
    for pid in tree(root):
        if fields := stat_fields(pid):
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / TICKS


def rss_mb(root: int) -> float:
    """Resident memory of the whole tree, in MB."""
    return sum(own_rss_mb(pid) for pid in tree(root))


def own_rss_mb(pid: int) -> float:
    """Resident memory of one process, in MB; 0 if it is gone."""
    fields = stat_fields(pid)
    return int(fields[21]) * PAGE / 1e6 if fields else 0.0


def open_files(root: int) -> int:
    """Descriptors the whole tree holds: sockets above all."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in tree(root))
