"""A gateway between the start of its process and its settings."""

import os
import subprocess
import sys
from pathlib import Path

SERVE = """
import os, signal

def serve() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    print("lives")
"""
START = """
from dataclasses import replace
from joulegate.cli import COMMANDS, run

raise SystemExit(run(["serve"], {"serve": replace(COMMANDS["serve"], target="just_started:serve")}))
"""


def test_a_reload_before_the_settings_are_read_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "just_started.py").write_text(SERVE)
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"lives\n"), done.stderr
