"""The learned temperature against the plant's own."""

import random
from pathlib import Path

import pytest

from gpu_agent.plant import GpuSpec, Plant
from gpu_agent.thermal import STEP, ThermalModel, Track, follow, learn
from joulegate.units import Joules, MegaHertz, Seconds, Watts

CLOCKS = (MegaHertz(210), MegaHertz(1980))


@pytest.mark.parametrize(
    ("seconds", "kelvin_per_watt", "ambient"), [(20.0, 0.07, 30.0), (60.0, 0.07, 22.0), (15.0, 0.05, 38.0)]
)
def test_it_learns_the_plant_to_within_a_degree(
    tmp_path: Path, seconds: float, kelvin_per_watt: float, ambient: float
) -> None:
    spec = GpuSpec(
        uuid="GPU",
        clocks=CLOCKS,
        ambient_celsius=ambient,
        kelvin_per_watt=kelvin_per_watt,
        thermal_seconds=seconds,
    )
    gpu = Plant.create(tmp_path / "plant", [spec]).gpus[0]
    rng, track, errors = random.Random(7), None, []
    now = Seconds(1e6)
    watts = Watts(70.0)
    for tick in range(3600):
        if rng.random() < 0.03:
            watts = Watts(rng.uniform(70.0, 700.0))
        gpu.publish(now, gpu.true_energy_at(now), watts, CLOCKS[1])
        celsius = float(round(gpu.temperature_at(now)))  # as NVML shows it
        track = follow(track, celsius, gpu.true_energy_at(now), now)
        if tick > 900 and tick % 20 == 0:
            later = Seconds(now + 60.0)
            errors.append(abs(track.model.ahead(celsius, watts, Seconds(60.0)) - gpu.temperature_at(later)))
        now = Seconds(now + 1.0)
    assert sum(errors) / len(errors) < 1.0


def test_gaps_and_short_steps_teach_nothing() -> None:
    track = follow(None, 40.0, Joules(0.0), Seconds(0.0))
    assert follow(track, 90.0, Joules(1.0), Seconds(STEP / 2)) is track
    late = follow(track, 90.0, Joules(9e9), Seconds(3600.0))
    assert late == Track(track.model, 90.0, Joules(9e9), Seconds(3600.0))
    assert follow(track, 41.0, Joules(500.0), Seconds(STEP)).model.steps == 1


def test_a_model_that_has_learned_nothing_odd_settles() -> None:
    model = ThermalModel()
    for _ in range(300):
        model = learn(model, 50.0, 50.0, Watts(300.0), Seconds(5.0))
    assert model.ahead(50.0, Watts(300.0), Seconds(600.0)) == pytest.approx(50.0, abs=1.0)
