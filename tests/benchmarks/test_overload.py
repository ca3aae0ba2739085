"""What a late first token is made of, in `scripts/bench overload`."""

import os
import time

import pytest

from benchmarks.overload import Seen, parts, scheduled


def seen(name: str, first: float | None) -> Seen:
    return Seen(name, 0.0, 200, first, 1.0, True)


def test_a_first_token_is_queue_engine_and_what_the_gateway_did_not_see() -> None:
    known = {
        "a": {"actual": {"ttft_s": 0.3}, "queued_s": 0.1},
        "gone": {"actual": {"ttft_s": None}, "queued_s": 9.0},
        "another's": {"actual": {"ttft_s": 9.0}, "queued_s": 9.0},
    }
    found = parts([seen("a", 0.35), seen("gone", 0.01), seen("refused", None)], known)
    assert found == pytest.approx({"ttft": 0.35, "queue": 0.1, "engine": 0.2, "outside": 0.05})


def test_a_process_that_works_has_run() -> None:
    before, _ = scheduled(os.getpid())
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    after, waited = scheduled(os.getpid())
    assert after - before >= 0.015
    assert waited >= 0.0
