"""The gateway as it is measured, with everything on, loses nothing; a ratio needs both of its sides."""

import pytest

from benchmarks.overhead import Plan, compare, medians, ratios

PLAN = Plan(rounds=1, seconds=0.5, connections=4, streams=8, chunks=10, gap_ms=2.0, prompt_bytes=500)


@pytest.mark.slow
def test_the_gateway_answers_the_bench_in_full() -> None:
    """`compare` raises at the first lost request, lost event or usage event that was not asked for."""
    samples = compare(["direct", "joulegate"], PLAN)
    figures = {name: medians(rows) for name, rows in samples.items()}
    assert figures["direct"]["request_us"] == 0.0
    assert figures["joulegate"]["request_us"] > 0.0
    assert figures["joulegate"]["chunk_us"] > 0.0
    against = ratios(figures)
    assert against["request_ratio"] is None, "the peer did not run"
    assert against["rss_mb"] == pytest.approx(figures["joulegate"]["rss_mb"], abs=0.1)
