"""The agent's end of the socket to its watchdog, against a watchdog that answers when it is told to."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.unix_socket import MAX_PACKET
from gpu_agent.watchdog_link import SILENT, WatchdogLink
from joulegate.units import Seconds

GPUS = frozenset({"GPU-0"})
SOON = Seconds(1e9)


class Watchdog:
    """Takes one agent; `answer` confirms the packets that wait."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._agent: socket.socket | None = None
        self.deadlines: list[float | None] = []

    def answer(self, why: str = "") -> None:
        agent = self._agent = self._agent or self._listener.accept()[0]
        agent.setblocking(False)
        try:
            while packet := agent.recv(MAX_PACKET):
                said = json.loads(packet)
                self.deadlines.append(said["deadline"])
                agent.send(json.dumps({"seq": said["seq"], "why": why}).encode())
        except BlockingIOError:
            return

    def leave(self) -> None:
        for each in (self._agent, self._listener):
            if each is not None:
                each.close()


@pytest.fixture
def watchdog(tmp_path: Path) -> Iterator[Watchdog]:
    watchdog = Watchdog(tmp_path / "socket")
    yield watchdog
    watchdog.leave()


@pytest.fixture
def link(tmp_path: Path, watchdog: Watchdog) -> Iterator[WatchdogLink]:
    link = WatchdogLink(tmp_path / "socket", Seconds(0.05))
    yield link
    link.close()


def test_without_a_confirmation_nothing_is_armed_and_it_is_not_asked_again_at_once(
    link: WatchdogLink, watchdog: Watchdog
) -> None:
    assert not link.arm(SOON, GPUS)
    watchdog.answer()  # too late
    assert not link.gone()
    assert not link.arm(SOON, GPUS)
    assert link.problem == SILENT


def test_a_renewal_does_not_wait_but_the_next_one_wants_it_confirmed(
    link: WatchdogLink, watchdog: Watchdog
) -> None:
    assert not link.renew(SOON, GPUS)  # nothing was confirmed yet
    link.arm(None, ())
    watchdog.answer()
    assert not link.gone()
    assert link.renew(SOON, GPUS)
    assert not link.renew(SOON, GPUS)
    watchdog.answer()
    assert link.renew(SOON, GPUS)
    assert watchdog.deadlines == [None, None, SOON]


def test_a_watchdog_that_is_hindered_confirms_no_renewal(link: WatchdogLink, watchdog: Watchdog) -> None:
    link.arm(None, ())
    watchdog.answer("it cannot open the driver")
    assert not link.renew(SOON, GPUS)
    assert link.problem == "it cannot open the driver"


def test_a_watchdog_that_has_gone_is_noticed_behind_its_last_answers(
    link: WatchdogLink, watchdog: Watchdog
) -> None:
    link.arm(None, ())
    watchdog.answer()
    watchdog.leave()
    assert link.gone()
    assert not link.renew(SOON, GPUS)
    assert not link.arm(SOON, GPUS)
