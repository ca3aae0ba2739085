from pathlib import Path

from benchmarks.projection import PAPER, measure, misjudged
from control.projection import Stretch
from simulator.costs import EngineCosts
from simulator.recipe import scale
from simulator.simulate import read_profile
from simulator.spool import read_load
from simulator.streams import Half

CONFIGS = Path(__file__).parents[2] / "configs"


def test_it_is_nearer_than_throttllems_and_predicted_lengths_reserve_too_much_kv() -> None:
    costs = EngineCosts(read_profile(CONFIGS / "profiles" / "h100_llama-3.1-8b_tp1.json"))
    whole = scale(read_load(CONFIGS / "traces" / "azure2023_conv_10min.csv"), 0.5, 0)
    load = Half(whole, second=False)
    known, predicted = (measure(load, costs, known) for known in (True, False))
    assert min(known["looks"], predicted["looks"]) > 20
    assert known["batch_pct"] <= PAPER["batch_pct"]
    assert known["kv_pct"] <= PAPER["kv_pct"]
    assert known["time_pct"] < 1.0
    assert predicted["kv_bias_pct"] > 0.0
    assert predicted["batch_pct"] > known["batch_pct"]


def test_who_is_projected_too_long_and_who_too_short_are_both_wrong() -> None:
    stretches = (Stretch(2, 3, 0.0, ()), Stretch(2, 1, 0.0, ()))  # 3 3 1 1
    assert misjudged(stretches, [3, 1, 1, 0]) == (0, 5)
    assert misjudged(stretches, [3, 3, 1, 1, 0]) == (2 + 1, 8)
    assert misjudged(stretches, [3, 0]) == (2, 3)
