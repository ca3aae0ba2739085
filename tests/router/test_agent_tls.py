"""A gateway shows an agent its certificate, and talks to no agent that another authority signed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost
from joulegate.errors import UserError
from joulegate.settings.gateway import Gateway
from joulegate.settings.load import load
from joulegate.units import MegaHertz, Seconds
from router.agents import Agent
from router.poll_client import control_client
from tests.certificates import certificate, ready_address


@dataclass(frozen=True)
class Guarded:
    """An agent behind mutual TLS."""

    url: str
    keys: Path
    gpu: str

    def agent(self, shown: str | None, authority: str = "authority") -> Agent:
        pair = None if shown is None else (str(self.keys / f"{shown}.crt"), str(self.keys / f"{shown}.key"))
        client = control_client(self.url, None, str(self.keys / f"{authority}.crt"), pair)
        return Agent("node", client, "gateway")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    keys = tmp_path_factory.mktemp("keys")
    certificate(keys, "authority", None)
    certificate(keys, "agent", "authority")
    certificate(keys, "gateway", "authority")
    certificate(keys, "stranger", None)
    tls = {
        "cert_file": str(keys / "agent.crt"),
        "key_file": str(keys / "agent.key"),
        "client_ca_file": str(keys / "authority.crt"),
    }
    listen = {"host": "127.0.0.1", "port": 0, "tls": tls}
    host = AgentHost(tmp_path_factory.mktemp("node"), 1, {"listen": listen})
    try:
        host.start_watchdog()
        host.start_agent()
        host.wait_for(lambda: ready_address(host.logged()) is not None, "agent")
        address = ready_address(host.logged())
        assert address is not None
        yield Guarded(f"https://127.0.0.1:{address.rpartition(':')[2]}", keys, host.uuids[0])
    finally:
        host.stop()


async def test_with_its_certificate_it_sees_and_sets_clocks(guarded: Guarded) -> None:
    agent = guarded.agent("gateway")
    await agent.discover(Seconds(0.0))
    assert agent.view.up, agent.view.problem
    assert await agent.sync({guarded.gpu: MegaHertz(1200)}, (), Seconds(2.0), "test", Seconds(0.0))
    assert agent.view.gpus[guarded.gpu].ceiling_mhz == 1200
    await agent.sync({guarded.gpu: None}, (), Seconds(2.0), "test", Seconds(0.0))
    await agent.close()


@pytest.mark.parametrize(
    ("shown", "authority"), [(None, "authority"), ("stranger", "authority"), ("gateway", "stranger")]
)
async def test_else_the_agent_counts_as_down_and_it_says_why(
    guarded: Guarded, shown: str | None, authority: str
) -> None:
    agent = guarded.agent(shown, authority)
    await agent.discover(Seconds(0.0))
    assert not agent.view.up
    assert guarded.url in agent.view.problem
    await agent.close()


def test_a_certificate_needs_its_key_and_tls(tmp_path: Path) -> None:
    (tmp_path / "gateway.crt").write_text("")
    path = tmp_path / "gateway.yaml"
    models = "models: [{name: m, pools: [{name: p, instances: [{name: i, url: 'http://x:1'}]}]}]"
    path.write_text(
        f"version: 1\n{models}\nagents:\n  - {{name: n, url: 'https://n:1', cert_file: gateway.crt}}\n"
    )
    with pytest.raises(UserError, match="key_file is missing"):
        load(path, Gateway)
    path.write_text(
        f"version: 1\n{models}\nagents:\n"
        "  - {name: n, url: 'http://n:1', cert_file: gateway.crt, key_file: gateway.crt}\n"
    )
    with pytest.raises(UserError, match="no effect without TLS"):
        load(path, Gateway)
