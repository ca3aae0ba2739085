"""TLS on both sides: the CA in the settings counts; the direct way to the client is the same."""

import asyncio
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from joulegate.errors import UserError
from joulegate.settings.front import Tls
from router.limits import UpstreamLimits
from router.ports import Ending, Endpoint, Engine
from router.serve import Certificate
from tests.fakes.edge import edge, post, unchunked
from tests.fakes.engine import (
    LAST_CHUNK,
    STREAM_HEAD,
    FakeEngine,
    Line,
    Received,
    answer,
    chunk,
    event,
    says,
)
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
GOOD = answer(b'{"a":1}')
NOWHERE = Endpoint("none", "pool", Engine.VLLM, "127.0.0.1", 9)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    folder.mkdir(exist_ok=True)
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "good")


def server_context(pair: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


async def test_an_instance_behind_tls_is_asked_and_its_connection_kept(pair: tuple[Path, Path]) -> None:
    async with FakeEngine(says(GOOD), tls=server_context(pair)) as engine:
        endpoint = replace(engine.endpoint(), host="localhost", tls=True, ca_file=str(pair[0]))
        gate = FakeGate(endpoint)
        async with edge(gate) as it:
            for _ in range(2):
                assert (await it.raw(post(ASK))).endswith(b'{"a":1}')
        assert engine.connections == 1
    assert [report.ending for report in gate.reports] == [Ending.OK, Ending.OK]


@pytest.mark.parametrize(
    "problem", ["another CA", "the system's CAs", "another name", "no such file", "no TLS"]
)
async def test_an_instance_that_cannot_prove_itself_is_down(
    problem: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    context = None if problem == "no TLS" else server_context(pair)
    async with FakeEngine(says(GOOD), tls=context) as engine:
        ca_file: str | None = str(pair[0])
        if problem == "another CA":
            ca_file = str((await asyncio.to_thread(certificate, tmp_path, "other"))[0])
        elif problem == "the system's CAs":
            ca_file = None
        elif problem == "no such file":
            ca_file = str(tmp_path / "none.pem")
        host = "127.0.0.1" if problem == "another name" else "localhost"
        gate = FakeGate(replace(engine.endpoint(), host=host, tls=True, ca_file=ca_file))
        async with edge(gate, upstream=UpstreamLimits(connect=2.0)) as it:
            got = await it.raw(post(ASK))
        assert engine.requests == []
    assert got.startswith(b"HTTP/1.1 502 ")
    assert [report.ending for report in gate.reports] == [Ending.UPSTREAM_DOWN]


async def test_a_client_behind_tls_is_served_refused_and_seen_to_leave(pair: tuple[Path, Path]) -> None:
    left = asyncio.Event()

    async def script(line: Line, received: Received) -> None:
        await line.send(STREAM_HEAD + chunk(event("x" * 300_000)))
        if b"stay" in received.body:
            await line.send(LAST_CHUNK)
            return
        await line.closed()
        left.set()

    trust = ssl.create_default_context(cafile=str(pair[0]))
    async with FakeEngine(script) as engine:
        gate = FakeGate(engine.endpoint())
        async with edge(gate, tls=pair) as it:

            async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                return await asyncio.open_connection(
                    "127.0.0.1", it.port, ssl=trust, server_hostname="localhost", limit=2**26
                )

            reader, writer = await connect()
            writer.write(post(b'{"stream":true,"model":"stay"}'))
            assert unchunked((await reader.read()).partition(b"\r\n\r\n")[2]) == event("x" * 300_000)
            writer.close()
            reader, writer = await connect()
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
            writer.close()
            reader, writer = await connect()
            writer.write(post(b'{"stream":true,"model":"leave"}'))
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
            await asyncio.wait_for(left.wait(), 5)
            await it.settled()
    assert [report.ending for report in gate.reports] == [Ending.OK, Ending.CLIENT_LEFT]


async def test_a_ca_file_that_changes_is_read_again_and_a_broken_one_is_not_believed(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ca_file = (await asyncio.to_thread(certificate, tmp_path, "other"))[0]
    async with FakeEngine(says(GOOD), tls=server_context(pair)) as engine:
        endpoint = replace(engine.endpoint(), host="localhost", tls=True, ca_file=str(ca_file))
        async with edge(FakeGate(endpoint), upstream=UpstreamLimits(keep_alive=0.0)) as it:
            assert (await it.raw(post(ASK))).startswith(b"HTTP/1.1 502 ")
            ca_file.write_bytes(pair[0].read_bytes())
            assert (await it.raw(post(ASK))).startswith(b"HTTP/1.1 200 ")
            ca_file.write_text("-----BEGIN CERTIFICATE-----\nhalf of")
            assert (await it.raw(post(ASK))).startswith(b"HTTP/1.1 200 ")
        assert engine.connections >= 2


async def test_the_listeners_certificate_is_renewed_and_a_bad_one_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = tmp_path / "served.pem", tmp_path / "served.key"
    other = await asyncio.to_thread(certificate, tmp_path, "other")

    def put(made: tuple[Path, Path]) -> None:
        cert.write_bytes(made[0].read_bytes())
        key.write_bytes(made[1].read_bytes())

    put(pair)
    async with edge(FakeGate(NOWHERE), tls=(cert, key)) as it:

        async def shows(made: tuple[Path, Path]) -> bool:
            trust = ssl.create_default_context(cafile=str(made[0]))
            try:
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", it.port, ssl=trust, server_hostname="localhost"
                )
            except ssl.SSLCertVerificationError:
                return False
            writer.close()
            return True

        shown = Certificate(Tls(cert_file=cert, key_file=key), it.server.config)
        assert not shown.renew()
        assert await shows(pair)
        put(other)
        assert shown.renew()
        assert await shows(other)
        assert not await shows(pair)
        key.write_bytes(pair[1].read_bytes())
        with pytest.raises(UserError, match=r"listen\.tls"):
            shown.renew()
        assert await shows(other)
