import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.holdback import Block, HoldbackRules, is_held, measure, number, settled
from joulegate.units import Joules, Seconds

RULES = HoldbackRules(share=0.02)


def blocks(rng: random.Random, count: int, share: float, saving: float) -> list[Block]:
    """Blocks whose load varies threefold; governed ones draw `saving` less."""
    found = []
    for _ in range(count):
        held = rng.random() < share
        work = rng.uniform(100.0, 300.0) * 28.0
        watts = (90.0 + work / 28.0) * rng.gauss(1.0, 0.03)
        found.append(Block(held, Seconds(28.0), Joules(28.0 * watts * (1.0 if held else 1.0 - saving)), work))
    return found


def test_the_share_is_kept_and_every_replica_draws_the_same() -> None:
    drawn = [is_held(RULES, f"i{n % 8}", n // 8) for n in range(40_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.02, abs=0.003)
    assert drawn == [is_held(HoldbackRules(share=0.02), f"i{n % 8}", n // 8) for n in range(40_000)]


def test_instances_are_not_held_back_together() -> None:
    wide = HoldbackRules(share=0.5)
    together = sum(is_held(wide, "a", n) == is_held(wide, "b", n) for n in range(2000))
    assert 900 < together < 1100


@given(st.floats(0, 1e10))
def test_the_start_of_a_block_does_not_count(now: float) -> None:
    start = number(RULES, Seconds(now)) * RULES.block
    assert not settled(RULES, Seconds(start + 0.5))
    assert settled(RULES, Seconds(start + 15.0))


@pytest.mark.parametrize("saving", [0.0, 0.3])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(saving: float) -> None:
    hits = 0
    for seed in range(200):
        found = measure(blocks(random.Random(seed), 1500, 0.02, saving))
        assert found is not None
        hits += found.low <= saving <= found.high
    assert 180 <= hits <= 199


def test_adjusting_for_work_makes_the_interval_much_narrower() -> None:
    with_work = measure(blocks(random.Random(1), 1500, 0.02, 0.3))
    without = [Block(b.held, b.seconds, b.joules, 0.0) for b in blocks(random.Random(1), 1500, 0.02, 0.3)]
    plain = measure(without)
    assert with_work is not None
    assert plain is not None
    assert with_work.high - with_work.low < 0.5 * (plain.high - plain.low)


def test_too_few_blocks_claim_nothing() -> None:
    assert measure([]) is None
    assert measure(blocks(random.Random(1), 50, 0.02, 0.3)) is None


def test_an_idle_fleet_saves_nothing_and_does_not_divide_by_zero() -> None:
    idle = [Block(n % 2 == 0, Seconds(28.0), Joules(28.0 * 70.0), 0.0) for n in range(40)]
    found = measure(idle)
    assert found is not None
    assert (found.ratio, found.low, found.high) == (0.0, 0.0, 0.0)
