"""Faults of instances, of the agent and of the machine, each with what it must look like from outside.

A case breaks something, looks, and mends it: it returns what the client saw and what the clocks did. `near`
is the only instance of its pool; what it cannot serve goes up to `far`.
"""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from tests.fakes.engine import (
    DONE,
    LAST_CHUNK,
    ROLE,
    STREAM_HEAD,
    Line,
    Received,
    Script,
    answer,
    chunk,
    dies_after,
    event,
    hangs_after,
    says,
)
from tests.faults.rig import TOP, Answer, Pending, Site, body, until

HELD = "under control"
NONE = "none are set there"
CHAT = "/v1/chat"
READ = 0.05  # seconds in which the gateway reads what came before a reset
BEGUN = STREAM_HEAD + chunk(ROLE) + chunk(event("a"))
ERROR_EVENT = b'data: {"error": {"message": "boom", "type": "InternalServerError", "code": 500}}\n\n'
Seen = tuple[str, str]  # what the client saw, what the clocks did


@dataclass(frozen=True, slots=True)
class Case:
    fault: str
    happen: Callable[[Site], Seen]


def controlled(site: Site) -> str:
    """The lease is held: the fault of an instance takes no clock from the others."""
    site.until(lambda: leased(site))
    return HELD


def leased(site: Site) -> bool:
    agents = site.gateway.picture().get("agents", [])
    assert isinstance(agents, list)
    return bool(agents and agents[0]["lease"])


def asked(site: Site, script: Script, *, stream: bool = False, bounded: bool = True) -> tuple[Answer, int]:
    """A request that `near` answers so, and how many were sent to `near` for it."""
    count = 0

    async def counted(line: Line, received: Received) -> None:
        nonlocal count
        count += 1
        await script(line, received)

    with site.front.doing(CHAT, counted):
        found = site.gateway.ask(stream=stream, bounded=bounded)
    return found, count


def served_elsewhere(site: Site, script: Script, *, bounded: bool = True) -> Seen:
    found, count = asked(site, script, bounded=bounded)
    assert (found.status, found.instance, count) == (200, "far", 1), found
    return f"200 from another instance, {found.seconds:.2f} s", controlled(site)


def ends_in_an_error_event(site: Site, script: Script) -> Seen:
    retries = site.gateway.gauge("joulegate_retries_total")
    found, count = asked(site, script, stream=True)
    assert (found.status, found.instance, found.cut, count) == (200, "near", False, 1), found
    assert found.ends_in_error, found.body
    assert site.gateway.gauge("joulegate_retries_total") == retries, "sent twice after a first byte"
    return f"the stream so far, one error event, `[DONE]`; {found.seconds:.1f} s", controlled(site)


def reset_before_the_head(site: Site) -> Seen:
    return served_elsewhere(site, dies_after(b""))


def reset_mid_stream(site: Site) -> Seen:
    return ends_in_an_error_event(site, dies_after(BEGUN, READ))


def hang_before_the_head(site: Site) -> Seen:
    return served_elsewhere(site, hangs_after(b""))


def hang_of_any_length(site: Site) -> Seen:
    """Nothing bounds its answer, and its probes pass: but the engine says that it has nothing to do."""
    return served_elsewhere(site, hangs_after(b""), bounded=False)


def stopped_before_the_first_byte(site: Site) -> Seen:
    """Its sockets stay open: nothing but its probes tells."""
    with held_by_k1(site, 600, stream=False) as pending:
        site.engines["k1"].signal(signal.SIGSTOP)
        found = pending.join()
    site.engines["k1"].signal(signal.SIGCONT)
    until(lambda: not down(site, "k1"))
    assert (found.status, found.instance) == (200, "k2"), found
    return f"200 from another instance, {found.seconds:.1f} s", NONE


def hang_mid_stream(site: Site) -> Seen:
    return ends_in_an_error_event(site, hangs_after(BEGUN))


def truncated(site: Site) -> Seen:
    head = STREAM_HEAD.replace(b"text/event-stream; charset=utf-8", b"application/json")
    found, count = asked(site, dies_after(head + chunk(b'{"choices":['), READ))
    assert (found.status, found.cut, count) == (200, True, 1), found
    return "200 whose body is cut, and seen to be cut; not sent again", controlled(site)


def error_then_done(site: Site) -> Seen:
    failed = failures(site)
    sent = [ROLE, event("a"), ERROR_EVENT, DONE]
    found, count = asked(site, says(STREAM_HEAD + b"".join(map(chunk, sent)) + LAST_CHUNK), stream=True)
    assert (found.body.encode(), count) == (b"".join(sent), 1)
    until(lambda: failures(site) == failed + 1)
    return "the engine's own bytes; counted as a failure", controlled(site)


def failures(site: Site) -> int:
    page = site.gateway.http.get("/metrics").text.splitlines()
    wanted = 'joulegate_requests_total{model="main",outcome="upstream_error",pool="small"}'
    return sum(int(float(line.rpartition(" ")[2])) for line in page if line.startswith(wanted))


def empty_answer(site: Site) -> Seen:
    return served_elsewhere(site, says(answer(b"")))


def reset_on_reuse(site: Site) -> Seen:
    """The first request leaves a kept connection; the second finds it dead."""
    lines: list[Line] = []

    async def script(line: Line, _: Received) -> None:
        if line in lines:
            line.reset()
            return
        lines.append(line)
        await line.send(answer(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'))

    retries = site.gateway.gauge("joulegate_retries_total")
    with site.front.doing(CHAT, script):
        found = [site.gateway.ask() for _ in range(2)]
    assert [(one.status, one.instance) for one in found] == [(200, "near")] * 2
    assert len(lines) == 2, "the second request came over a connection of its own in the end"
    assert site.gateway.gauge("joulegate_retries_total") == retries
    return "200 from the same instance, over a fresh connection", controlled(site)


def refused(site: Site) -> Seen:
    with nobody_listens(site):
        found = [site.gateway.ask() for _ in range(4)]
        until(lambda: site.gateway.instances()["near"]["health"] == "down")
        site.at_default(0)
        found.append(site.gateway.ask())
    assert {(one.status, one.instance) for one in found} == {(200, "far")}, found
    worst = max(one.seconds for one in found)
    return f"200 from the larger pool, at most {worst:.2f} s", "to default: its load is unknown"


@contextlib.contextmanager
def nobody_listens(site: Site) -> Iterator[None]:
    site.front.shut()
    try:
        yield
    finally:
        site.front.open()


def another_model(site: Site) -> Seen:
    """It comes between two probes: none of them fails."""
    ours = site.front.target
    site.front.target = ("127.0.0.1", site.engine_ports["k1"])
    try:
        found = [site.gateway.ask() for _ in range(4)]
        until(lambda: site.gateway.instances()["near"]["why_not"] == "serves spare, not main")
        assert site.gateway.instances()["near"]["health"] == "up"
    finally:
        site.front.target = ours
    until(lambda: not site.gateway.instances()["near"]["why_not"])
    assert {(one.status, one.instance) for one in found} == {(200, "far")}, found
    return f"200 from another instance, at most {max(one.seconds for one in found):.2f} s", controlled(site)


def name_moves(site: Site) -> Seen:
    """The server at the old address goes, one at the new address has come; the port is the same."""
    site.elsewhere.open()
    site.move("127.0.0.2")
    site.front.shut()
    try:
        first = site.gateway.ask()
        until(lambda: site.gateway.ask().instance == "near")
    finally:
        site.front.open()
        site.move("127.0.0.1")
        site.elsewhere.shut()
    assert first.status == 200
    return "200; new connections go to the new address at once", controlled(site)


def unreadable_metrics(script: Script) -> Callable[[Site], Seen]:
    def happen(site: Site) -> Seen:
        site.governed()
        with site.front.doing("/metrics", script):
            took = site.at_default(0)
            site.until(lambda: site.ceilings()[1] < TOP)  # the other instance is governed still
            found = site.gateway.ask()
            assert (found.status, found.instance) == (200, "near"), found
            assert site.gateway.instances()["near"]["health"] == "up"
        return "200, served as before", f"that GPU to default in {took:.1f} s, others {controlled(site)}"

    return happen


def stale(line: Line, _: Received) -> "asyncio.Future[None]":
    return asyncio.ensure_future(line.send(answer(b"gone", b"404 Not Found")))


async def slow(line: Line, _: Received) -> None:
    await asyncio.sleep(1.5)  # the gateway waits for one second
    await line.send(answer(b"vllm:num_requests_running 0\n"))


async def huge(line: Line, _: Received) -> None:
    await line.send(answer(b"# " + b"x" * 6 * 2**20 + b"\nvllm:num_requests_running 0\n"))


async def garbage(line: Line, _: Received) -> None:
    await line.send(answer(os.urandom(50_000) + b"\nvllm:num_requests_running NaN\n"))


# real engines, killed


@contextlib.contextmanager
def held_by_k1(site: Site, tokens: int, *, stream: bool) -> Iterator[Pending]:
    """A request that k1 has; k2 takes part again once k1 has it."""
    site.gateway.drain("k2")
    with site.asking("spare", tokens=tokens, stream=stream) as pending:
        until(lambda: site.gateway.instances()["k1"]["running"] == 1)
        site.gateway.drain("k2", resume=True)
        yield pending


def killed_before_the_first_byte(site: Site) -> Seen:
    site.engines["k1"].signal(signal.SIGSTOP)
    with held_by_k1(site, 3, stream=False) as pending:
        site.engines["k1"].kill()
        found = pending.join()
    site.restart("k1")
    assert (found.status, found.instance) == (200, "k2"), found
    return "200 from another instance", NONE


def killed_mid_stream(site: Site) -> Seen:
    retries = site.gateway.gauge("joulegate_retries_total")
    with held_by_k1(site, 4000, stream=True) as pending:
        until(lambda: decoding(site, "k1"))
        site.engines["k1"].kill()
        found = pending.join()
    site.restart("k1")
    assert found.ends_in_error, found.body[-400:]
    assert site.gateway.gauge("joulegate_retries_total") == retries
    return "the stream so far, one error event, `[DONE]`", NONE


def decoding(site: Site, name: str) -> bool:
    found = site.gateway.instances()[name]["decoding"]
    return isinstance(found, int) and found > 0


def killed_when_idle(site: Site) -> Seen:
    site.engines["k1"].kill()
    found = [site.gateway.ask("spare") for _ in range(8)]
    site.restart("k1")
    assert {one.status for one in found} == {200}, found
    return f"8 of 8 answered, at most {max(one.seconds for one in found):.2f} s", NONE


def whole_pool_down(site: Site) -> Seen:
    for name in ("k1", "k2"):
        site.engines[name].kill()
    found = [site.gateway.ask("spare") for _ in range(4)]
    until(lambda: down(site, "k1") and down(site, "k2"))
    last = site.gateway.ask("spare")
    for name in ("k1", "k2"):
        site.restart(name)
    assert {one.status for one in found} <= {502, 503}, found
    assert (last.status, last.code) == (503, "no_instance"), last
    assert float(last.headers["retry-after"]) >= 1
    return f"503 with Retry-After after {last.seconds * 1e3:.0f} ms", NONE


def down(site: Site, name: str) -> bool:
    return site.gateway.instances()[name]["health"] == "down"


# the agent


def agent_killed(site: Site) -> Seen:
    site.governed()
    site.agent.kill()
    took = site.at_default()
    found = site.gateway.ask()
    site.agent.start()
    return served(found), f"to default in {took:.2f} s, by the watchdog"


def agent_stopped(site: Site) -> Seen:
    """The watchdog kills an agent that hangs."""
    site.governed()
    site.agent.signal(signal.SIGSTOP)
    took = site.at_default()
    found = site.gateway.ask()
    site.agent.kill()
    site.agent.start()
    return served(found), f"to default in {took:.2f} s, by the watchdog"


def served(found: Answer) -> str:
    assert found.status == 200, found
    return "200, served as before"


def broken_agent(script: Callable[[Site], Script], why: str) -> Callable[[Site], Seen]:
    def happen(site: Site) -> Seen:
        site.governed()
        with site.agent_front.doing("/v1/", script(site)):
            took = site.at_default()
            found = site.gateway.ask()
        return served(found), f"to default in {took:.1f} s: {why}"

    return happen


def slow_agent(site: Site) -> Script:
    async def script(line: Line, received: Received) -> None:
        await asyncio.sleep(1.2)  # the gateway waits for one second
        await line.send(await site.agent_front.forward(received))

    return script


def garbling_agent(_: Site) -> Script:
    return says(answer(b'{"version":1,"lease":"yes","gpus":[{"uuid":7}]}'))


def forgetful_agent(site: Site) -> Script:
    """Says all is well, of no GPU."""

    async def script(line: Line, received: Received) -> None:
        whole = await site.agent_front.forward(received)
        head, _, said = whole.partition(b"\r\n\r\n")
        start = said.find(b'"gpus":[')
        if not head.startswith(b"HTTP/1.1 200") or start < 0:
            await line.send(whole)
            return
        await line.send(answer(said[:start] + b'"gpus":[]}'))

    return script


# the machine


def out_of_descriptors(site: Site) -> Seen:
    """Every request to `near` needs a new connection, and so does every new client."""
    pid = site.gateway.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    site.gateway.ask()  # leaves the client a connection
    until(lambda: site.gateway.in_flight() == 0)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        found = [site.gateway.ask() for _ in range(3)]
        strangers = [stranger(site) for _ in range(3)]
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert {(one.status, one.code) for one in found} <= {(503, "gateway_busy"), (503, "no_instance")}, found
    assert strangers == [0] * 3
    until(lambda: stranger(site) == 200)
    return "503 with Retry-After on connections it has; new ones are refused", controlled(site)


def stranger(site: Site) -> int:
    """A client with a connection of its own."""
    url = f"http://127.0.0.1:{site.gateway.port}/v1/chat/completions"
    try:
        return httpx.post(url, json=body("spare", 3, False), timeout=1.0).status_code
    except httpx.HTTPError:
        return 0


@contextlib.contextmanager
def disk_full(pid: int) -> Iterator[None]:
    """No file of the process may grow: what it writes fails as on a full disk."""
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def gateway_cannot_write(site: Site) -> Seen:
    site.governed()
    with disk_full(site.gateway.process.pid):
        site.front.shut()  # gives it something to log
        until(lambda: down(site, "near"))
        found = [site.gateway.ask() for _ in range(3)]
        site.front.open()
        until(lambda: not down(site, "near"))
    assert {one.status for one in found} == {200}, found
    return "200, served as before; log lines are lost", controlled(site)


def agent_cannot_write(site: Site) -> Seen:
    """The lease it has goes on; a new one needs its token on disk, and is not granted."""
    site.governed()
    with disk_full(site.agent.pid):
        site.agent_front.shut()
        took = site.at_default()
        site.agent_front.open()
        until(lambda: site.gateway.gauge("joulegate_agent_up") == 1)
        found = site.gateway.ask()
        assert min(site.ceilings()) == TOP
    return served(found), f"to default in {took:.1f} s when the lease runs out; no new one"


CASES = (
    Case("connection reset before the head", reset_before_the_head),
    Case("connection reset in a stream", reset_mid_stream),
    Case("instance hangs before the head", hang_before_the_head),
    Case("the same, without `max_tokens`", hang_of_any_length),
    Case("instance hangs in a stream", hang_mid_stream),
    Case("chunked body truncated", truncated),
    Case("error event, then `[DONE]`", error_then_done),
    Case("200 with an empty body", empty_answer),
    Case("kept connection reset when it is used again", reset_on_reuse),
    Case("instance refuses connections: pool down, a larger one up", refused),
    Case("another model behind an instance's address", another_model),
    Case("instance's name resolves to another address", name_moves),
    Case("engine metrics stale (404)", unreadable_metrics(stale)),
    Case("engine metrics slow", unreadable_metrics(slow)),
    Case("engine metrics huge (6 MiB)", unreadable_metrics(huge)),
    Case("engine metrics garbage", unreadable_metrics(garbage)),
    Case("engine stopped before the first byte", stopped_before_the_first_byte),
    Case("engine killed before the first byte", killed_before_the_first_byte),
    Case("engine killed in a stream", killed_mid_stream),
    Case("engine killed when idle", killed_when_idle),
    Case("whole pool killed", whole_pool_down),
    Case("agent killed", agent_killed),
    Case("agent stopped", agent_stopped),
    Case("agent slow (1.2 s)", broken_agent(slow_agent, "no word from the agent in time")),
    Case("agent answers garbage", broken_agent(garbling_agent, "the lease runs out")),
    Case("agent says nothing of its GPUs", broken_agent(forgetful_agent, "their state is unknown")),
    Case("gateway out of file descriptors", out_of_descriptors),
    Case("disk full at the gateway", gateway_cannot_write),
    Case("disk full at the agent", agent_cannot_write),
)
