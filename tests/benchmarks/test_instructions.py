"""What `scripts/bench instructions` counts is requests and chunks that were served."""

import subprocess
import sys

import pytest

from benchmarks.instructions import KINDS, STREAM_CHUNKS
from benchmarks.proxies import ROOT


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_request_is_answered(kind: str) -> None:
    argv = [sys.executable, "-m", "benchmarks.instructions", "--serve", kind, str(2 * STREAM_CHUNKS)]
    done = subprocess.run(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
