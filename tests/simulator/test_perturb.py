import dataclasses
from pathlib import Path

import orjson

from joulegate.engine_profile import parse_profile
from simulator.perturb import LATENCY, POWER, SPREAD, perturbed

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"


def test_a_plant_is_off_by_at_most_the_spread_and_by_seed() -> None:
    profile = parse_profile(orjson.loads(PROFILE.read_bytes()))
    plant = perturbed(profile, 7)
    assert plant == perturbed(profile, 7)
    assert plant != perturbed(profile, 8)
    pairs = [
        *((getattr(plant.latency, n), getattr(profile.latency, n)) for n in LATENCY),
        *((getattr(plant.power, n), getattr(profile.power, n)) for n in POWER),
    ]
    ratios = [off / true for off, true in pairs if true]
    assert all(1 - SPREAD <= r <= 1 + SPREAD for r in ratios)
    assert max(ratios) - min(ratios) > SPREAD / 2
    same = {f.name for f in dataclasses.fields(profile)} - {"latency", "power"}
    assert all(getattr(plant, name) == getattr(profile, name) for name in same)
