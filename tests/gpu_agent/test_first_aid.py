"""Clocks are free before anything heavy is imported, and only a dead agent's."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost, end
from gpu_agent.plant import GpuSpec, Plant
from gpu_agent.state_file import CapNote, Memory, StateFile, Undo, claimed, read
from joulegate.errors import UserError
from joulegate.units import MegaHertz, Seconds, Watts

HEAVY = {"pydantic", "ruamel.yaml", "typer", "uvicorn", "asyncio", "logging", "http", "ssl"}
PROBE = """
import json, sys
from joulegate import cli
from gpu_agent.first_aid import first_aid
first_aid()
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """One GPU, locked at 900 MHz."""
    spec = GpuSpec(uuid="GPU-0", clocks=(MegaHertz(210), MegaHertz(900), MegaHertz(1500), MegaHertz(1980)))
    plant = Plant.create(tmp_path / "plant", [spec])
    plant.gpus[0].lock(MegaHertz(210), MegaHertz(900), Seconds(1.0))
    return plant


def left_by_an_agent(folder: Path, undo: Undo | None) -> None:
    StateFile(folder, undo).save(Memory(token=7, locked=frozenset({"GPU-0", "GPU-gone"})))


def help_now(state_dir: Path | None) -> set[str]:
    """Run it in a process of its own: the modules it took."""
    given = {} if state_dir is None else {"STATE_DIRECTORY": str(state_dir)}
    result = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | given, capture_output=True, check=True
    )
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(("site_lock", "expected"), [(None, None), (1500, 1500)])
def test_it_frees_with_next_to_nothing_imported(
    tmp_path: Path, plant: Plant, site_lock: int | None, expected: int | None
) -> None:
    left_by_an_agent(tmp_path, Undo(str(tmp_path / "plant"), site_lock))
    assert not help_now(tmp_path) & HEAVY
    assert plant.gpus[0].request.high == expected
    assert read(tmp_path).token == 7
    assert read(tmp_path).locked == {"GPU-0", "GPU-gone"}


def test_a_living_agents_clocks_are_its_own(tmp_path: Path, plant: Plant) -> None:
    left_by_an_agent(tmp_path, Undo(str(tmp_path / "plant")))
    with claimed(tmp_path):
        help_now(tmp_path)
    assert plant.gpus[0].request.high == 900


@pytest.mark.parametrize(
    ("undo", "directory"),
    [
        pytest.param(None, True, id="it takes agent.yaml"),
        pytest.param(Undo("no such plant"), True, id="no driver"),
        pytest.param(Undo("plant"), False, id="not told where"),
    ],
)
def test_what_it_cannot_do_is_left_to_the_ordinary_start(
    tmp_path: Path, plant: Plant, undo: Undo | None, directory: bool
) -> None:
    left_by_an_agent(tmp_path, undo)
    help_now(tmp_path if directory else None)
    assert plant.gpus[0].request.high == 900


def test_asking_for_help_frees_nothing(tmp_path: Path, plant: Plant) -> None:
    left_by_an_agent(tmp_path, Undo(str(tmp_path / "plant")))
    command = [sys.executable, "-m", "joulegate", "watchdog", "--help"]
    given = {"STATE_DIRECTORY": str(tmp_path)}
    subprocess.run(command, env=os.environ | given, capture_output=True, check=True)
    assert plant.gpus[0].request.high == 900


def test_an_agent_writes_down_how_it_is_undone(tmp_path: Path) -> None:
    host = AgentHost(tmp_path / "node", 1, {"clocks": {"site_lock_mhz": 1500}})
    try:
        host.start_agent()
        host.wait_ready()
        assert read(host.folder / "state").undo == Undo(str(host.plant_file), 1500)
        end(host.agent, signal.SIGKILL)
    finally:
        host.stop()


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    caps = (CapNote("GPU-0", Watts(700.0), Watts(450.0)),)
    memory = Memory(3, 2, frozenset({"GPU-0"}), caps, 9, Undo(None, 1500))
    StateFile(tmp_path, memory.undo).save(memory)
    assert read(tmp_path) == memory
    assert (tmp_path / "agent.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"token": "x"}', '{"locked": 3}', '{"caps": {"G": [1]}}', '{"undo": {"shell": "rm"}}'],
)
def test_a_damaged_file_is_named_and_not_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UserError, match="other users"), claimed(folder):
        pass


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "agent.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        StateFile(tmp_path).save(Memory(token=1))
    assert victim.read_text() == "precious"
