"""Shell: the agent as a process: built from agent.yaml, served, and taken down with clocks restored."""

import asyncio
import contextlib
import gc
import logging
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from gpu_agent.access import Client, Known
from gpu_agent.deadman import Deadman
from gpu_agent.drivers import driver_for, monotonic, undo_for
from gpu_agent.edge import Server
from gpu_agent.fleet import managed
from gpu_agent.http_api import Api
from gpu_agent.lease import Grace
from gpu_agent.metrics import exposition
from gpu_agent.node import Node
from gpu_agent.state_file import StateFile
from gpu_agent.unix_socket import bound
from gpu_agent.watchdog_link import WatchdogLink
from joulegate.errors import UserError
from joulegate.settings.agent import AgentSettings, Listen, Tls
from joulegate.settings.load import read_secret
from joulegate.units import Seconds

log = logging.getLogger(__name__)
COMPANION = 10.0  # seconds our own watchdog gets to come up
TIDY = 1.0  # seconds between two rounds of housekeeping
SAMPLE = Seconds(0.05)  # between two readings of power where no counter counts


@dataclass(slots=True)
class Companion:
    """A watchdog this agent has started itself; None when somebody else starts one."""

    settings_file: Path
    process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start it if it does not run. It outlives us, frees the GPUs if it must, and then leaves."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "joulegate", "watchdog", "-c", str(self.settings_file)]
            self.process = subprocess.Popen([*command, "--exit-with-agent"], start_new_session=True)

    def leave(self) -> None:
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)


def run(settings: AgentSettings, companion: Companion | None) -> bool:
    """Serve until SIGTERM or SIGINT; or True: a new process must take over.

    The caller holds the claim on `state_dir`. Raises UserError.
    """
    node = build(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(node, settings, companion))
    return node.outdated


def build(settings: AgentSettings) -> Node:
    driver = driver_for(settings)
    watchdog = settings.watchdog
    return Node(
        driver,
        managed(settings, driver),
        WatchdogLink(watchdog.socket, Seconds(watchdog.ack_ms / 1000.0)),
        StateFile(settings.state_dir, undo_for(settings)) if settings.allow_writes else None,
        Grace(Seconds(settings.restore_jitter_ms / 1000.0), Seconds(watchdog.grace_ms / 1000.0)),
        random.SystemRandom().random,
        monotonic,
    )


async def _serve(node: Node, settings: AgentSettings, companion: Companion | None) -> None:
    deadman = Deadman(node)
    listener = _listener(settings.listen)
    name = settings.node or socket.gethostname()
    api = Api(node, name, _known(settings.listen), lambda: exposition(node))
    server = Server(api, listener, _tls(settings.listen.tls))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await asyncio.to_thread(_start, node, companion)
        deadman.start()
        await server.start()
        gc.collect()
        gc.freeze()  # what stands at the start stays: no collection walks it again
        log.info("agent ready", extra={"node": name, "address": _address(listener)} | _summary(node))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_housekeeping(node, companion, stop))
            tasks.create_task(sampling(node, stop))
            await stop.wait()
            await asyncio.to_thread(node.shut, "the agent stops")  # clocks first, then the clients
        await server.stop()
    finally:
        node.shut("the agent stops")
        if deadman.is_alive():
            deadman.stop()
        if companion is not None:
            companion.leave()


def _start(node: Node, companion: Companion | None) -> None:
    node.recover()
    if companion is None:
        node.tidy()
        return
    companion.ensure()
    patience = time.monotonic() + COMPANION
    while not node.guarded() and time.monotonic() < patience:
        time.sleep(0.05)


async def _housekeeping(node: Node, companion: Companion | None, stop: asyncio.Event) -> None:
    while not stop.is_set():
        if companion is not None:
            companion.ensure()
        await asyncio.to_thread(node.tidy)
        if node.outdated:
            log.warning("the driver was upgraded: starting again")
            stop.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TIDY)


async def sampling(node: Node, stop: asyncio.Event) -> None:
    """Energy without a counter is a sum over readings of power: they are taken whoever listens, or nobody."""
    node.observe()
    while not stop.is_set():
        if node.integrates:
            node.observe(Seconds(SAMPLE / 2))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SAMPLE if node.integrates else TIDY)


def _summary(node: Node) -> dict[str, object]:
    gpus = node.infos()
    watched = {gpu.uuid: gpu.why_not_writable for gpu in gpus if not gpu.writable}
    return {"gpus": len(gpus), "restarts": node.restarts, "watched_only": watched}


def _known(listen: Listen) -> Sequence[Known]:
    known = []
    for token in listen.tokens:
        secret = read_secret(token.token, token.token_file)
        assert secret is not None  # the settings refuse a token without one
        client = Client(token.name, frozenset(token.scopes), frozenset(token.gpus))
        known.append(Known(client, secret.encode()))
    return known


def _tls(tls: Tls | None) -> ssl.SSLContext | None:
    """With `client_ca_file`, only who shows a certificate of it is let in."""
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    if tls.client_ca_file is not None:
        context.load_verify_locations(tls.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _listener(listen: Listen) -> socket.socket:
    """Raises UserError."""
    try:
        if listen.unix is not None:
            return _unix(listen.unix, int(listen.unix_mode, 8), listen.unix_group)
        assert listen.host is not None  # the settings want one of the two
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        fresh = socket.socket(family, socket.SOCK_STREAM)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        fresh.bind((listen.host, listen.port))
        return fresh
    except (OSError, LookupError) as error:
        where = listen.unix or f"{listen.host}:{listen.port}"
        raise UserError(f"cannot listen on {where}: {error}", "set 'listen'") from error


def _unix(path: Path, mode: int, group: str | None) -> socket.socket:
    fresh = bound(path, socket.SOCK_STREAM, "agent", "listen.unix")
    if group is not None:
        shutil.chown(path, group=group)
    path.chmod(mode)
    return fresh


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
