"""A slice of a real arrival trace through the gateway to two vLLM servers: nothing lost, nothing doubled."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vllm.servers import API_KEY, ROOT, Server, serve_argv, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
LIMIT = 40
INPUT, OUTPUT = 300, 150  # tokens: the model's context is 2,048 and its tokenizer knows few words


def clipped_slice(target: Path) -> int:
    """Write the start of the Azure 2023 conversation trace, shortened; returns its output tokens."""
    shared = ROOT.parent / "shared/data/traces/dev_azure2023_conv.csv"
    shipped = sorted((ROOT / "configs/traces").glob("*conv*.csv"))
    with (shared if shared.exists() else shipped[0]).open() as source, target.open("w") as out:
        rows = [row for _, row in zip(range(LIMIT), csv.DictReader(source), strict=False)]
        outputs = [min(int(row["output_tokens"]), OUTPUT) for row in rows]
        lines = csv.writer(out)
        lines.writerow(["timestamp_s", "input_tokens", "output_tokens"])
        for row, output in zip(rows, outputs, strict=True):
            lines.writerow([row["timestamp_s"], min(int(row["input_tokens"]), INPUT), output])
    return sum(outputs)


def test_a_replayed_slice_is_exact(gateway: Server, engines: tuple[Server, Server], tmp_path: Path) -> None:
    trace = tmp_path / "slice.csv"
    expected = clipped_slice(trace)
    generated = total(engines, "vllm:generation_tokens_total")
    succeeded = total(engines, "vllm:request_success_total")
    shares = [engine.metric("vllm:request_success_total") for engine in engines]
    command = serve_argv(trace)[0]
    argv = [command, "replay", str(trace), "--url", gateway.url, "--engine", "vllm", "--speed", "4", "--json"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, "OPENAI_API_KEY": API_KEY}
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["requests"], report["errors"]) == (LIMIT, 0)
    assert report["output_tokens"] == expected
    assert total(engines, "vllm:generation_tokens_total") - generated == expected
    assert total(engines, "vllm:request_success_total") - succeeded == LIMIT
    for engine, before in zip(engines, shares, strict=True):
        assert engine.metric("vllm:request_success_total") > before, "both servers must have had a share"
