"""Five rounds of every kind of death: nothing stays locked, and nothing is locked again."""

import pytest

from benchmarks.agent_kills import KINDS, run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_dies_clocks_come_back_and_stay() -> None:
    outcomes, _ = run(KINDS, rounds=5 * len(KINDS), nodes=8, seed=1)
    assert sorted(outcome.kind for outcome in outcomes) == sorted(5 * [kind.name for kind in KINDS])
    assert [(o.kind, o.left_locked, o.relocked) for o in outcomes if o.left_locked or o.relocked] == []
