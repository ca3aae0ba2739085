"""A slice of a real arrival trace through the gateway to two vLLM servers: nothing lost, nothing doubled."""

import csv
import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vllm.servers import API_KEY, JOULEGATE, ROOT, Server, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
LIMIT = 40
INPUT, OUTPUT = 300, 150  # tokens: the model's context is 2,048 and its tokenizer knows few words


def conversation_trace() -> Path:
    """Azure 2023, conversations: whole where it lies beside the tree, else the slice that is shipped."""
    whole = ROOT.parent / "shared/data/traces/dev_azure2023_conv.csv"
    return whole if whole.exists() else next((ROOT / "configs/traces").glob("*conv*.csv"))


def output_tokens(trace: Path) -> int:
    with trace.open() as source:
        rows = itertools.islice(csv.DictReader(source), LIMIT)
        return sum(min(int(row["output_tokens"]), OUTPUT) for row in rows)


def test_a_replayed_slice_is_exact(gateway: Server, engines: tuple[Server, Server]) -> None:
    trace = conversation_trace()
    expected = output_tokens(trace)
    generated = total(engines, "vllm:generation_tokens_total")
    succeeded = total(engines, "vllm:request_success_total")
    shares = [engine.metric("vllm:request_success_total") for engine in engines]
    argv = [
        JOULEGATE,
        "replay",
        str(trace),
        "--url",
        gateway.url,
        "--engine",
        "vllm",
        "--speed",
        "4",
        "--json",
    ]
    argv += ["--limit", str(LIMIT), "--clip-input", str(INPUT), "--clip-output", str(OUTPUT)]
    environment = {**os.environ, "OPENAI_API_KEY": API_KEY}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["requests"], report["errors"]) == (LIMIT, 0)
    assert report["output_tokens"] == expected
    assert total(engines, "vllm:generation_tokens_total") - generated == expected
    assert total(engines, "vllm:request_success_total") - succeeded == LIMIT
    for engine, before in zip(engines, shares, strict=True):
        assert engine.metric("vllm:request_success_total") > before, "both servers must have had a share"
