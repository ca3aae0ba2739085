"""An engine nobody profiled: no model at first, then never faster than what it has shown."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.online_model import LearnSettings, OnlineModel, learn
from predictor.online_samples import Sample, SampleMemory, SampleSettings
from predictor.physics import PhysicsModel

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"


def plant(name: str) -> PhysicsModel:
    return PhysicsModel(parse_profile(json.loads((PROFILES / f"{name}.json").read_text())))


ENGINE = plant("a100-40g_llama-3.1-8b_tp1")
TOP = ENGINE.clocks[-1]
IDLE = ENGINE.idle_watts


def watch(
    engine: PhysicsModel, clock: MegaHertz, count: int, rng: random.Random, at: float = 0.0
) -> list[Sample]:
    samples = []
    for _ in range(count):
        batch_size = rng.choice([1, 2, 4, 8, 16, 32])
        batch = Batch(batch_size, batch_size * rng.uniform(200.0, 1500.0), rng.choice([0, 0, 64]))
        seconds = Seconds(engine.iteration_time(batch, clock) * rng.gauss(1.0, 0.02))
        samples.append(Sample(batch, clock, seconds, engine.watts(batch, clock), Seconds(at)))
    return samples


def lowest_within(model: OnlineModel, batch: Batch, slowdown: float) -> MegaHertz:
    limit = slowdown * model.iteration_time(batch, model.clocks[-1])
    return next(f for f in model.clocks if model.iteration_time(batch, f) <= limit)


def test_no_model_before_enough_was_seen() -> None:
    few = watch(ENGINE, TOP, 7, random.Random(1))
    assert learn(few, ENGINE.clocks, IDLE, LearnSettings()) is None


@pytest.mark.parametrize("name", ["a100-40g_llama-3.1-8b_tp1", "h100_llama-3.1-70b_tp4"])
def test_exploring_goes_down_step_by_step_and_never_out_of_its_slack(name: str) -> None:
    engine, rng = plant(name), random.Random(2)
    top = engine.clocks[-1]
    memory = SampleMemory(engine.clocks, SampleSettings())
    clock, path = top, [top]
    for step in range(8):
        for sample in watch(engine, clock, 120, rng, float(step)):
            memory.add(sample)
        model = learn(memory, engine.clocks, engine.idle_watts, LearnSettings())
        assert model is not None
        clock = max(lowest_within(model, Batch(n, 600.0 * n), 1.2) for n in (1, 8, 32))
        path.append(clock)
        for n in (1, 8, 32):
            load = Batch(n, 600.0 * n)
            assert engine.iteration_time(load, clock) <= 1.22 * engine.iteration_time(load, top)
    assert path[1] >= top / 1.2  # the first step trusts nothing but 1/x
    assert path[-1] < path[1]


def test_what_it_learned_is_monotone_in_clock_batch_and_context() -> None:
    rng = random.Random(3)
    samples = [s for f in (*ENGINE.clocks[::12], TOP) for s in watch(ENGINE, f, 80, rng)]
    model = learn(samples, ENGINE.clocks, IDLE, LearnSettings())
    assert model is not None
    for batch in (1, 3, 8, 33, 200):
        times = [model.iteration_time(Batch(batch, 500.0 * batch), f) for f in model.clocks]
        assert all(slow >= fast for slow, fast in pairwise(times))
    for clock in model.clocks[::10]:
        times = [model.iteration_time(Batch(b, 10_000.0), clock) for b in range(1, 300)]
        assert all(more >= fewer for fewer, more in pairwise(times))
        power = [model.watts(Batch(8), f) for f in model.clocks]
        assert all(high >= low for low, high in pairwise(power))


def test_without_telemetry_no_clock_looks_cheaper() -> None:
    bare = [Sample(s.batch, s.clock, s.seconds, None, s.at) for s in watch(ENGINE, TOP, 60, random.Random(4))]
    model = learn(bare, ENGINE.clocks, Watts(0.0), LearnSettings())
    assert model is not None
    assert not model.power
    assert len({model.watts(Batch(8), clock) for clock in model.clocks}) == 1


def test_rare_regimes_survive_busy_ones() -> None:
    memory = SampleMemory(ENGINE.clocks, SampleSettings(per_regime=4))
    rare = Sample(Batch(100, 5e5), float(TOP), Seconds(0.1), None, Seconds(0.0))
    memory.add(rare)
    for sample in watch(ENGINE, TOP, 3000, random.Random(5)):
        memory.add(sample)
    assert rare in list(memory)
    assert len(memory) < 400


def test_the_memory_is_bounded_and_forgets_the_regime_longest_unseen() -> None:
    memory = SampleMemory(ENGINE.clocks, SampleSettings(per_regime=2, regimes=3))
    for power in range(6):
        memory.add(Sample(Batch(2**power), float(TOP), Seconds(0.1), None, Seconds(power)))
    assert [sample.batch.decoding for sample in memory] == [8, 16, 32]
    memory.forget_before(Seconds(5.0))
    assert [sample.batch.decoding for sample in memory] == [32]


@pytest.mark.parametrize("name", ["a100-40g_llama-3.1-8b_tp1", "h100_llama-3.1-70b_tp4"])
def test_load_levels_never_seen_are_predicted_from_those_that_were(name: str) -> None:
    engine, rng = plant(name), random.Random(6)
    clock = engine.clocks[-1]

    def windows(levels: list[int], noise: float) -> list[Sample]:
        """Windows of some iterations each: their mean work, and their mean time."""
        seen = []
        for level in levels:
            for _ in range(12):
                work = [
                    Batch(level, level * rng.uniform(200, 900), rng.choice([0, 0, 0, 128])) for _ in range(20)
                ]
                mean = Batch(
                    level,
                    sum(batch.context_tokens for batch in work) / len(work),
                    round(sum(batch.prefill_tokens for batch in work) / len(work)),
                )
                seconds = sum(engine.iteration_time(batch, clock) for batch in work) / len(work)
                seen.append(Sample(mean, clock, Seconds(seconds * rng.gauss(1.0, noise)), None, Seconds(0.0)))
        return seen

    model = learn(windows([1, 4, 16, 32, 64], noise=0.02), engine.clocks, Watts(0.0), LearnSettings())
    assert model is not None
    held_out = windows([2, 8, 24, 48], noise=0.0)
    truth = [1.0 / sample.seconds for sample in held_out]
    predicted = [1.0 / model.iteration_time(sample.batch, clock) for sample in held_out]
    mean = sum(truth) / len(truth)
    left = sum((a - b) ** 2 for a, b in zip(truth, predicted, strict=True))
    assert 1.0 - left / sum((a - mean) ** 2 for a in truth) >= 0.97
