"""What the tests know of a running server, and how the gateway in front of two is configured."""

import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MODEL = "tiny-llama"
CONTEXT = 2048
API_KEY = "sk-tester"
JOULEGATE = str(Path(sys.executable).with_name("joulegate"))
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Server:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """Sum over the labels of one series of /metrics."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=10) as response:
            lines: list[str] = response.read().decode().splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{")]
        assert values, f"{self.url} has no {name}"
        return sum(values)


def total(engines: Iterable[Server], name: str) -> float:
    return sum(engine.metric(name) for engine in engines)


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether it becomes true; the limit only bounds a failing run."""
    deadline = time.monotonic() + timeout_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def gateway_yaml(port: int, engines: Iterable[Server]) -> str:
    """True lengths are forced by max_tokens in these tests, so the predictor must not see it."""
    instances = "".join(
        f"          - {{name: vllm-{index}, url: '{engine.url}', engine: vllm, slots: 16}}\n"
        for index, engine in enumerate(engines)
    )
    return (
        "version: 1\n"
        f"listen: {{port: {port}}}\n"
        f"auth: {{keys: [{{name: tester, key: {API_KEY}}}]}}\n"
        "predictor: {use_max_tokens: false}\n"
        "objectives: {ttft_ms: {short: 10000, medium: 20000, long: 30000}, tpot_ms: 1000}\n"
        f"models:\n  - name: {MODEL}\n    pools:\n      - name: all\n        mode: observe\n"
        f"        instances:\n{instances}"
    )
