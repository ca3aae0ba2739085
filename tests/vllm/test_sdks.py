"""SDKs that build on openai's see the same through the gateway as they see directly.

They live in an environment of their own: `scripts/engines/clients` makes it, and is part of
`scripts/test --engines`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vllm.servers import API_KEY, MODEL, Server

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
PYTHON = os.environ.get("JOULEGATE_CLIENTS_PYTHON", "")
SCRIPTS = sorted((Path(__file__).parent / "clients").glob("*_sdk.py"))


def seen(script: Path, server: Server) -> dict[str, object]:
    command = [PYTHON, str(script), server.url + "/v1", API_KEY, MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_sdk_sees_the_same_as_direct(
    script: Path, gateway: Server, engines: tuple[Server, Server]
) -> None:
    through = seen(script, gateway)
    assert through["chat"]
    assert through == seen(script, engines[0])
