"""agent.yaml: what it refuses, and why."""

from pathlib import Path

import pytest

from joulegate.settings.agent import AgentSettings
from joulegate.settings.load import SettingsError, load

HEAD = "version: 1\ndevice: {kind: emulated, plant: plant}\n"


def read(folder: Path, text: str) -> AgentSettings:
    path = folder / "agent.yaml"
    path.write_text(HEAD + text)
    return load(path, AgentSettings)


def test_by_default_it_watches_only_and_listens_on_a_unix_socket(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert settings.allow_writes is False
    assert settings.listen.unix == Path("/run/joulegate/agent.sock")
    assert settings.listen.host is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("listen: {host: 0.0.0.0}", "anybody on the network", id="open to the network"),
        pytest.param(
            "listen: {host: 10.0.0.1, tokens: [{name: a, token: b}]}", "in the clear", id="token without TLS"
        ),
        pytest.param("listen: {host: 127.0.0.1, unix: a.sock}", "exactly one", id="two addresses"),
        pytest.param("listen: {host: localhost}", "not an IP address", id="a name"),
        pytest.param("listen: {unix: a, tokens: [{name: a}]}", "has no token", id="no secret"),
        pytest.param("clocks: {min_mhz: 900, max_mhz: 600}", "is above max_mhz", id="clamps crossed"),
        pytest.param("clocks: {dwell_s: 0.1}", "dwell_s", id="lowering more than once a second"),
        pytest.param("allow_write: true", "allow_writes", id="a slip of the pen"),
    ],
)
def test_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        read(tmp_path, text)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_needs_no_token(tmp_path: Path, host: str) -> None:
    assert read(tmp_path, f"listen: {{host: '{host}', port: 0}}").listen.loopback
