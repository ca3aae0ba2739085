import random

import pytest

from control.holdback import HoldbackRules, measure
from joulegate.units import Joules, Seconds
from router.holdback_meter import HoldbackMeter

RULES = HoldbackRules(share=0.2, block=Seconds(30.0), settle=Seconds(2.0))


def run(meter: HoldbackMeter, hours: float, saving: float, rng: random.Random, acts: bool = True) -> None:
    """Ticks of 250 ms under a load that wanders; a governed instance draws `saving` less."""
    now, load = 0.0, 1.0
    while now < 3600.0 * hours:
        now += 0.25
        load = min(2.0, max(0.2, load + rng.uniform(-0.05, 0.05)))
        meter.did(100 * load, 10 * load)
        watts = (80.0 + 200.0 * load) * (1.0 if meter.held else 1.0 - saving)
        meter.tick(Joules(watts * 0.25), acts, Seconds(now))


def test_what_is_held_back_measures_what_governing_saves() -> None:
    meter = HoldbackMeter("a", RULES)
    run(meter, 4.0, 0.25, random.Random(3))
    found = measure(meter.blocks)
    assert found is not None
    assert found.ratio == pytest.approx(0.25, abs=0.02)
    assert found.low < 0.25 < found.high
    assert found.blocks_held / (found.blocks_held + found.blocks_governed) == pytest.approx(0.2, abs=0.05)


def test_where_clocks_are_not_set_nothing_is_held_back_or_measured() -> None:
    meter = HoldbackMeter("a", RULES)
    run(meter, 1.0, 0.25, random.Random(3), acts=False)
    assert not meter.held
    assert not meter.blocks


def test_blocks_are_as_long_as_what_was_counted_of_them() -> None:
    meter = HoldbackMeter("a", RULES)
    run(meter, 0.2, 0.0, random.Random(3))
    assert all(27.0 <= block.seconds <= 28.5 for block in meter.blocks)
