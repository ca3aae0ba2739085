"""The scripts of the tree: what they say to a wrong call, and that they are quick when nothing is to do."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / argv[0]), *argv[1:]],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=env,
    )


@pytest.mark.parametrize(
    "argv", [("scripts/install", "--bogus"), ("scripts/bench", "bogus"), ("scripts/bench",)]
)
def test_a_wrong_call_is_an_error_with_help(argv: tuple[str, ...]) -> None:
    done = run(*argv)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "help: " in done.stderr


@pytest.mark.parametrize("script", ["install", "test", "bench"])
def test_a_script_says_how_it_is_called(script: str) -> None:
    done = run(f"scripts/{script}", "--help")
    assert done.returncode == 0
    assert f"scripts/{script}" in done.stdout


def test_a_service_without_a_home_can_install() -> None:
    done = run("scripts/install", "--help", env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stderr) == (0, "")


def test_bench_names_what_there_is() -> None:
    listed = run("scripts/bench", "--help").stderr
    assert "overhead" in listed
    assert "soak" in listed


def test_every_script_is_executable_and_stops_at_the_first_failure() -> None:
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file() and p.suffix != ".sh"]
    for script in [*scripts, ROOT / "scripts/engines/install", ROOT / ".ci/run"]:
        assert script.stat().st_mode & 0o111, script
        assert "set -euo pipefail" in script.read_text(), script
