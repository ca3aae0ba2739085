"""Agent and watchdog as processes: whatever happens to either, clocks come back."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost, end
from gpu_agent.plant_layout import Call, NvmlReturn
from gpu_agent.state_file import Memory, StateFile
from joulegate.units import MegaHertz, Seconds

FREE = [None, None]
LOCKED = [900, 900]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    host = AgentHost(tmp_path / "node", 2, {"restore_jitter_ms": 100})
    yield host
    host.stop()


def start(host: AgentHost, ttl: float) -> object:
    """Agent, watchdog, and a lease that locks both GPUs; the lease's token."""
    host.start_watchdog()
    host.start_agent()
    host.wait_ready()
    return lock(host, ttl)


def lock(host: AgentHost, ttl: float) -> object:
    """A new lease and its token. Agent and watchdog may have to meet first, or an old lease to run out."""
    token: object = None

    def locked() -> bool:
        nonlocal token
        targets = dict.fromkeys(host.uuids, 900)
        status, reply = host.post(
            "/v1/sync", {"holder": "test", "lease": token, "ttl_s": ttl, "targets": targets}
        )
        token = reply["lease"] if status == 200 else None
        time.sleep(0.0 if host.ceilings() == LOCKED else 0.1)
        return host.ceilings() == LOCKED

    host.wait_for(locked, "lock")
    return token


def lock_again(host: AgentHost, token: object) -> list[int | None]:
    """Renew until the clocks are down again."""

    def locked() -> bool:
        targets = dict.fromkeys(host.uuids, 900)
        host.post("/v1/sync", {"holder": "test", "lease": token, "ttl_s": 20.0, "targets": targets})
        return host.ceilings() == LOCKED

    host.wait_for(locked, "lock")
    return host.ceilings()


def caller(host: AgentHost) -> socket.socket:
    """Connected to the watchdog."""
    fresh = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fresh.settimeout(20.0)
    fresh.connect(str(host.folder / "watchdog.sock"))
    return fresh


def wait_free(host: AgentHost) -> None:
    host.wait_for(lambda: host.ceilings() == FREE, "restored clocks", seconds=20.0)


def test_a_killed_agent_leaves_nothing_locked(host: AgentHost) -> None:
    start(host, ttl=20.0)
    end(host.agent, signal.SIGKILL)
    wait_free(host)
    assert "went away with clocks locked" in host.logged()


def test_a_stopped_agent_is_killed_before_its_clocks_are_reset(host: AgentHost) -> None:
    start(host, ttl=1.0)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGSTOP)
    wait_free(host)
    # The watchdog wrote last, and by then the agent was dead: nothing can lock again when it is continued.
    assert host.watchdog is not None
    assert {gpu.request.pid for gpu in host.plant.gpus} == {host.watchdog.pid}
    assert host.agent.wait(timeout=5) == -signal.SIGKILL


def test_an_agent_whose_holder_left_restores_by_itself(host: AgentHost) -> None:
    start(host, ttl=1.0)
    wait_free(host)
    assert host.agent is not None
    assert {gpu.request.pid for gpu in host.plant.gpus} == {host.agent.pid}
    assert host.agent.poll() is None


def test_a_killed_watchdog_means_clocks_up_until_there_is_one_again(host: AgentHost) -> None:
    token = start(host, ttl=20.0)
    end(host.watchdog, signal.SIGKILL)
    wait_free(host)
    assert host.agent is not None
    assert host.agent.poll() is None
    host.start_watchdog()
    assert lock_again(host, token) == LOCKED


def test_a_stopped_watchdog_means_clocks_up_and_it_kills_nobody_when_it_wakes(host: AgentHost) -> None:
    token = start(host, ttl=2.0)
    assert host.watchdog is not None
    assert host.agent is not None
    host.watchdog.send_signal(signal.SIGSTOP)
    status, reply = host.post("/v1/sync", {"holder": "test", "lease": token, "targets": {"GPU-0": 600}})
    assert status == 200, reply
    assert host.ceilings() == FREE
    time.sleep(2.5)  # past the deadline that it was told last
    host.watchdog.send_signal(signal.SIGCONT)
    lock(host, ttl=1.0)
    assert host.agent.poll() is None


def stand_still(host: AgentHost, seconds: float) -> None:
    """Agent and watchdog, as they do where the machine does. Then the watchdog goes on."""
    assert host.agent is not None
    assert host.watchdog is not None
    host.agent.send_signal(signal.SIGSTOP)
    host.watchdog.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    host.watchdog.send_signal(signal.SIGCONT)


def test_a_watchdog_that_stood_still_frees_the_clocks_first_and_ends_an_agent_that_stays_silent(
    host: AgentHost,
) -> None:
    start(host, ttl=1.0)
    assert host.agent is not None
    stand_still(host, 2.0)
    wait_free(host)
    assert host.agent.wait(timeout=20) == -signal.SIGKILL
    log = host.logged()
    assert 0 <= log.index("we stood still past a deadline") < log.index("clocks reset") < log.index("killing")
    assert host.ceilings() == FREE


def test_an_agent_that_stood_still_with_its_watchdog_lives_on(host: AgentHost) -> None:
    """On a machine that stands still on its own it may be too slow once, but not each time."""
    start(host, ttl=1.0)
    for _ in range(5):
        stand_still(host, 2.0)
        wait_free(host)
        assert host.agent is not None
        host.agent.send_signal(signal.SIGCONT)
        time.sleep(1.5)  # more than it is given to speak
        if host.agent.poll() is None:
            break
        host.start_agent()
        host.wait_ready()
        lock(host, ttl=1.0)
    assert "killing" not in host.logged().rpartition("agent connected")[2]
    lock(host, ttl=1.0)


@pytest.mark.parametrize("first", ["agent", "watchdog"])
def test_both_killed_the_one_that_starts_first_frees_the_clocks(host: AgentHost, first: str) -> None:
    start(host, ttl=20.0)
    end(host.watchdog, signal.SIGKILL)
    end(host.agent, signal.SIGKILL)
    assert host.ceilings() == LOCKED
    if first == "agent":
        host.start_agent()
    else:
        host.start_watchdog()
    wait_free(host)


def test_a_watchdog_that_starts_beside_a_hung_agent_ends_it(host: AgentHost) -> None:
    start(host, ttl=20.0)
    assert host.agent is not None
    host.agent.send_signal(signal.SIGSTOP)
    end(host.watchdog, signal.SIGKILL)
    host.start_watchdog()
    wait_free(host)
    assert host.agent.wait(timeout=5) == -signal.SIGKILL


def test_an_agent_that_dies_before_it_could_free_what_it_found_is_made_up_for(host: AgentHost) -> None:
    state = host.folder / "state"
    state.mkdir(mode=0o700)
    StateFile(state).save(Memory(locked=frozenset(host.uuids)))
    for gpu in host.plant.gpus:
        gpu.lock(MegaHertz(210), MegaHertz(900), Seconds(time.monotonic()))
        gpu.fail(Call.RESET, NvmlReturn.TIMEOUT)
    host.start_agent()
    host.wait_ready()
    host.start_watchdog()
    host.wait_for(lambda: "agent connected" in host.logged(), "connection")
    end(host.agent, signal.SIGKILL)
    for gpu in host.plant.gpus:
        gpu.heal()
    wait_free(host)


def test_a_watchdog_told_to_stop_frees_first_what_it_has_begun_to_free(host: AgentHost) -> None:
    start(host, ttl=20.0)
    for gpu in host.plant.gpus:
        gpu.fail(Call.RESET, NvmlReturn.TIMEOUT)
    end(host.agent, signal.SIGKILL)
    host.wait_for(lambda: "reset failed" in host.logged(), "failed reset")
    assert host.watchdog is not None
    host.watchdog.terminate()
    for gpu in host.plant.gpus:
        gpu.heal()
    assert host.watchdog.wait(timeout=20) == 0
    assert host.ceilings() == FREE


@pytest.mark.parametrize("packet", [b"garbage", b"[]", b'{"seq": 1}', b'{"seq": 1, "deadline": "x"}'])
def test_garbage_on_its_socket_does_not_end_it(host: AgentHost, packet: bytes) -> None:
    host.start_watchdog()
    host.wait_for(lambda: "watchdog ready" in host.logged(), "watchdog")
    pidfd = os.pidfd_open(os.getpid())
    with caller(host), caller(host) as babbler:  # the first says nothing at all
        socket.send_fds(babbler, [packet], [pidfd])
        os.close(pidfd)
        assert babbler.recv(100) == b""
        host.start_agent()
        host.wait_ready()
        lock(host, ttl=20.0)
        end(host.agent, signal.SIGKILL)
        wait_free(host)


def test_sigterm_restores_and_leaves_with_status_0(host: AgentHost) -> None:
    start(host, ttl=20.0)
    assert host.agent is not None
    assert host.watchdog is not None
    host.agent.terminate()
    assert host.agent.wait(timeout=20) == 0
    assert host.ceilings() == FREE
    host.watchdog.terminate()
    assert host.watchdog.wait(timeout=20) == 0
    assert "killing" not in host.logged()


def test_an_agent_can_bring_its_own_watchdog_which_leaves_after_it(host: AgentHost) -> None:
    host.start_agent("--with-watchdog")
    host.wait_ready()
    lock(host, ttl=20.0)
    end(host.agent, signal.SIGKILL)
    wait_free(host)
    host.wait_for(lambda: not (host.folder / "watchdog.sock").exists(), "end of the watchdog", 20.0)


def test_two_agents_cannot_share_a_folder(host: AgentHost, tmp_path: Path) -> None:
    start(host, ttl=1.0)
    first = host.agent
    host.start_agent()
    assert host.agent is not None
    assert host.agent.wait(timeout=30) == 2
    assert "another agent uses" in host.logged()
    host.agent = first
