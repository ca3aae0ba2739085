"""The systemd units: least privilege, and a watchdog that outlives its agent."""

from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
AGENT, WATCHDOG = UNITS / "joulegate-agent.service", UNITS / "joulegate-watchdog.service"


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", [AGENT, WATCHDOG], ids=["agent", "watchdog"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CapabilityBoundingSet", "CAP_SYS_ADMIN"),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("DevicePolicy", "closed"),
        ("RestrictAddressFamilies", "AF_UNIX"),
        ("PrivateNetwork", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("Restart", "always"),
    ],
)
def test_privileges(unit: Path, name: str, value: str) -> None:
    assert settings(unit)[name] == [value]


def test_the_two_share_what_they_must_and_neither_needs_the_other_to_stop() -> None:
    agent, watchdog = settings(AGENT), settings(WATCHDOG)
    for name in ("RuntimeDirectory", "StateDirectory", "User", "RuntimeDirectoryPreserve"):
        assert agent[name] == watchdog[name]
    # A dependency that stops both at once would take the guard away with what it guards.
    for binding in ("Requires", "BindsTo", "PartOf"):
        assert binding not in agent
        assert binding not in watchdog
    assert int(watchdog["OOMScoreAdjust"][0]) < int(agent["OOMScoreAdjust"][0])
    assert watchdog["ExecStart"][0].split()[-2:] == agent["ExecStart"][0].split()[-2:]
