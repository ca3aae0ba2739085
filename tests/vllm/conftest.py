"""Two real vLLM servers on CPU with a tiny random model, and the gateway in front of them; once a session.

`scripts/test --engines` installs vLLM and names it in the environment; without that none is collected.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from benchmarks.processes import running, wait_until_ready
from simulator.children import free_ports
from tests.vllm.servers import API_KEY, CONTEXT, JOULEGATE, MODEL, Server, gateway_yaml

PYTHON = os.environ.get("JOULEGATE_VLLM_PYTHON", "")
MODEL_FOLDER = os.environ.get("JOULEGATE_VLLM_MODEL", "")
START_S = 400.0  # 40 s on an idle machine; CI has two busy cores
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinning would put both servers on the same core
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else the first request with logprobs stalls for half a minute
}
collect_ignore_glob = [] if PYTHON and MODEL_FOLDER else ["test_*.py"]


def vllm_argv(port: int) -> list[str]:
    argv = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL_FOLDER]
    argv += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    argv += ["--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--enforce-eager"]
    return [*argv, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Both start at the same time: most of it is importing torch."""
    folder = tmp_path_factory.mktemp("vllm")
    ports = free_ports(2)
    logs = [folder / f"{port}.log" for port in ports]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(running(vllm_argv(port), log, ENVIRONMENT))
            for port, log in zip(ports, logs, strict=True)
        ]
        for process, port, log in zip(processes, ports, logs, strict=True):
            wait_until_ready(process, port, "/health", log, START_S)
        yield Server(ports[0]), Server(ports[1])


@pytest.fixture(scope="session")
def gateway(engines: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    (port,) = free_ports(1)
    file = folder / "gateway.yaml"
    file.write_text(gateway_yaml(port, engines))
    with running([JOULEGATE, "serve", "-c", str(file)], folder / "log") as process:
        wait_until_ready(process, port, "/readyz", folder / "log")
        yield Server(port)


@pytest.fixture
def client(gateway: Server) -> Iterator[openai.OpenAI]:
    """The unmodified client of a user, pointed at the gateway."""
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


@pytest.fixture
def direct(engines: tuple[Server, Server]) -> Iterator[openai.OpenAI]:
    """The same client, pointed at one of the servers."""
    with openai.OpenAI(base_url=engines[0].url + "/v1", api_key="none", max_retries=0) as made:
        yield made
