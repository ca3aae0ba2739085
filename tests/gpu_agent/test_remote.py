"""An agent that listens on the network: TLS with a token, and mutual TLS."""

import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost
from tests.certificates import certificate, ready_address

TOKEN = "s3cret-remote"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    certificate(folder, "authority", None)
    certificate(folder, "agent", "authority")
    certificate(folder, "gateway", "authority")
    certificate(folder, "stranger", None)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[int]:
    tls = {
        "cert_file": str(keys / "agent.crt"),
        "key_file": str(keys / "agent.key"),
        "client_ca_file": str(keys / "authority.crt"),
    }
    token = {"name": "gateway", "token_file": str(keys / "token")}
    listen = {"host": "127.0.0.1", "port": 0, "tokens": [token], "tls": tls}
    host = AgentHost(tmp_path_factory.mktemp("node"), 1, {"listen": listen, "allow_writes": False})
    try:
        host.start_agent()
        host.wait_for(lambda: ready_address(host.logged()) is not None, "agent")
        address = ready_address(host.logged())
        assert address is not None
        yield int(address.rpartition(":")[2])
    finally:
        host.stop()


def ask(port: int, keys: Path, client: str | None, token: str) -> int:
    context = ssl.create_default_context(cafile=str(keys / "authority.crt"))
    if client:
        context.load_cert_chain(keys / f"{client}.crt", keys / f"{client}.key")
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10.0)
    try:
        connection.request("GET", "/v1/gpus", headers={"authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_certificate_and_token_together_open_the_door(port: int, keys: Path) -> None:
    assert ask(port, keys, "gateway", TOKEN) == 200
    assert ask(port, keys, "gateway", "wrong") == 401


@pytest.mark.parametrize("client", [None, "stranger"])
def test_without_a_certificate_of_the_authority_nobody_gets_in(
    port: int, keys: Path, client: str | None
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(port, keys, client, TOKEN)


def test_plain_http_is_not_answered(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    connection.request("GET", "/healthz")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse()
    connection.close()
