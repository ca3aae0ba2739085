"""Tokens a step, from the counters of a real page's format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.engine_metrics import read_gauges
from router.ports import Engine
from router.speculation import GRAIN, MOST, Speculation


def page(generated: float, accepted: float | None) -> bytes:
    lines = [
        "# TYPE vllm:generation_tokens_total counter",
        f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {generated}',
        'vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09',
    ]
    if accepted is not None:
        lines += [
            f'vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}',
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {accepted}',
        ]
    return "\n".join([*lines, ""]).encode()


def hear(speculation: Speculation, generated: float, accepted: float | None) -> float:
    return speculation.hear(read_gauges(page(generated, accepted), Engine.VLLM))


@given(st.integers(1, 8), st.floats(0.0, 1.0), st.integers(100, 2000))
def test_steps_that_all_have_a_draft_give_one_and_what_each_draft_had_accepted(
    drafted: int, share: float, steps: int
) -> None:
    speculation, per_step = Speculation(), 1.0 + drafted * share
    for seconds in range(1, 30):
        per = hear(speculation, steps * seconds * per_step, steps * seconds * (per_step - 1.0))
    assert per == pytest.approx(per_step, abs=GRAIN)


def test_steps_without_a_draft_count() -> None:
    assert hear(Speculation(), 3000.0, 1000.0) == pytest.approx(
        1.5
    )  # 1,000 steps of two tokens, 1,000 of one


def test_an_engine_that_counts_no_drafts_or_has_said_little_gives_one() -> None:
    silent = Speculation()
    assert hear(silent, 1e6, None) == 1.0
    assert hear(silent, 100.0, 60.0) == 1.0


def test_what_changes_is_followed_and_another_process_is_counted_anew() -> None:
    speculation = Speculation()
    assert hear(speculation, 1e6, 5e5) == pytest.approx(2.0)
    for n in range(1, 20):
        per = hear(speculation, 1e6 + 2000.0 * n, 5e5)  # drafts are refused from here on
    assert per < 1.05
    assert hear(speculation, 2000.0, 1500.0) == pytest.approx(4.0)


@given(st.lists(st.tuples(st.floats(0.0, 1e15), st.floats(0.0, 1e15))))
def test_no_page_leads_out_of_bounds(counters: list[tuple[float, float]]) -> None:
    speculation = Speculation()
    assert all(1.0 <= hear(speculation, *each) <= MOST for each in counters)
