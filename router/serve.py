"""Shell: the gateway on its socket: uvicorn with the guard, signals, TLS."""

import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from joulegate.settings.front import Edge, Listen, Tls
from router.app import build_app
from router.guard import guard
from router.limits import EdgeLimits, RelayLimits, UpstreamLimits
from router.relay import Relay
from router.reload import Reloader
from router.runtime import Runtime
from router.upstream import UpstreamPool, written

log = logging.getLogger(__name__)
COLLECT = 10_000, 20, 20  # a request leaves little behind: Python's own (700, 10, 10) looks for it too often
GRACE = 30  # seconds for running requests after SIGTERM


class GatewayServer(uvicorn.Server):
    """`on_exit` is told of the first signal to stop, while requests still run."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_exit()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what stands at the start stays: no collection walks it again
        gc.set_threshold(*COLLECT)


class Certificate:
    """The listener's, as it lies in its files."""

    def __init__(self, files: Tls, config: uvicorn.Config) -> None:
        self._files = (str(files.cert_file), str(files.key_file))
        self._config = config
        self._stamp = tuple(map(written, self._files))

    def renew(self) -> bool:
        """Take over what the files hold now: for new connections. Whether they have changed.

        Raises UserError for what is no certificate with its key; the old ones stay.
        """
        stamp = tuple(map(written, self._files))
        if stamp == self._stamp or self._config.ssl is None:
            return False
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
            self._config.ssl.load_cert_chain(*self._files)
        except OSError as error:
            raise UserError(f"listen.tls: {error}", "a certificate and its key, both as PEM") from error
        self._stamp = stamp
        return True


def serve_gateway(settings: settings_of.Gateway, path: Path) -> None:
    """Serve until a signal. `path` is read again on SIGHUP."""
    runtime = Runtime(settings)
    upstream = UpstreamPool(UpstreamLimits())
    limits = RelayLimits(body=int(settings.edge.body_mib * 2**20))
    relay = Relay(runtime.gate, upstream, runtime.keys, limits, runtime.refused)
    reloader = Reloader(path, runtime, [relay])
    app = build_app(runtime, reloader)

    def hang_up(signum: int, frame: FrameType | None) -> None:
        report = reloader.reload()
        log.info("settings read again", extra=report.picture())

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a probe would drown every other
    signal.signal(signal.SIGHUP, hang_up)
    if runtime.keys.is_open:
        log.warning("no API keys: everybody who reaches this port may use the models")
    config = _config(settings, app, relay)
    if settings.listen.tls is not None:
        reloader.renew = Certificate(settings.listen.tls, config).renew
    server = GatewayServer(config, runtime.leave)
    listener = _bound(settings.listen)
    log.info("gateway starts", extra={"gateway": runtime.name, "port": listener.getsockname()[1]})
    server.run(sockets=[listener])


def _bound(listen: Listen) -> socket.socket:
    """The socket to listen on. Raises UserError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((listen.host, listen.port))
    except OSError as error:
        listener.close()
        place = f"{listen.host}:{listen.port}"
        raise UserError(
            f"cannot listen on {place}: {error.strerror}", "listen.host and listen.port"
        ) from error
    return listener


def _config(settings: settings_of.Gateway, app: FastAPI, relay: Relay) -> uvicorn.Config:
    listen: Listen = settings.listen
    return uvicorn.Config(
        app,
        host=listen.host,
        port=listen.port,
        http=guard(_edge(settings.edge), relay),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here trusts them
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=None if listen.tls is None else str(listen.tls.cert_file),
        ssl_keyfile=None if listen.tls is None else str(listen.tls.key_file),
    )


def _edge(edge: Edge) -> EdgeLimits:
    return EdgeLimits(
        header_fields=edge.header_count,
        header_bytes=int(edge.header_kib * 1024),
        idle=edge.idle_s,
        head=edge.header_s,
        body=edge.body_s,
        reader=edge.reader_s,
    )
