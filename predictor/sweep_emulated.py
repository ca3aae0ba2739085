"""Pure: a sweep of an engine that does not exist: a profile whose parameters are hidden, with noise.

Every coefficient of the profile is off by up to `hidden` and the clock law with it; iterations mix decode
with prompt chunks; decode batches pad to CUDA graph sizes; the board's power limit holds. Each row
carries the truth it was blurred from, so that a model can be scored against what it was not shown.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from joulegate.domain import Batch
from joulegate.engine_profile import EngineProfile, LatencyCoefficients, PowerCoefficients
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.latency_data import Engine, Row, Sweep, phase_of
from predictor.physics import PhysicsModel

LONGEST = 8192  # tokens of context or prompt


@dataclass(frozen=True, slots=True)
class Blur:
    hidden: float = 0.10  # coefficients are off by up to this share
    noise: float = 0.03  # standard deviation of log time
    power_noise: float = 0.02
    clocks: int = 24  # swept, spread over the supported ones


def emulated_sweep(profile: EngineProfile, count: int, rng: np.random.Generator, blur: Blur) -> Sweep:
    """`count` random operating points of a plant made from `profile`."""
    plant = PhysicsModel(hide(profile, rng, blur.hidden))
    step = max(1, len(profile.clocks) // blur.clocks)
    clocks = profile.clocks[::-1][::step]
    rows = tuple(
        _measured(plant, _work(profile, rng), clocks[int(rng.integers(len(clocks)))], rng, blur)
        for _ in range(count)
    )
    engine = Engine("emulated", profile.gpu, "emulated", profile.model, profile.tp, whole_batch=False)
    return Sweep(engine, rows, Watts(profile.power.p_idle_w))


def hide(profile: EngineProfile, rng: np.random.Generator, share: float) -> EngineProfile:
    """The profile with every coefficient off by up to `share`; shares of one stay below one."""

    def off(values: dict[str, float]) -> dict[str, float]:
        return {name: value * float(rng.uniform(1.0 - share, 1.0 + share)) for name, value in values.items()}

    latency, power = off(asdict(profile.latency)), off(asdict(profile.power))
    power["vmin"], power["knee"] = min(0.98, power["vmin"]), min(0.96, power["knee"])
    power["s_fixed_share"] = min(0.9, power["s_fixed_share"])
    power["tdp_w"], power["p_idle_w"] = profile.power.tdp_w, profile.power.p_idle_w
    return replace(profile, latency=LatencyCoefficients(**latency), power=PowerCoefficients(**power))


def _work(profile: EngineProfile, rng: np.random.Generator) -> Batch:
    """Half decode alone, a third with a prompt chunk beside it, the rest prompts alone."""
    kind = rng.random()
    batch = round(_log_uniform(rng, 1, profile.engine.max_num_seqs)) if kind < 0.83 else 0
    context = min(profile.engine.kv_capacity_tokens, batch * round(_log_uniform(rng, 64, LONGEST)))
    if kind < 0.5:
        return Batch(batch, context)
    tokens = round(_log_uniform(rng, 16, min(LONGEST, profile.engine.max_num_batched_tokens)))
    prompts = (1, 1, 2, 4)[int(rng.integers(4))] if tokens >= 64 else 1
    return Batch(batch, context, tokens, prompts * (tokens / prompts) ** 2 / 2.0)


def _measured(
    plant: PhysicsModel, batch: Batch, clock: MegaHertz, rng: np.random.Generator, blur: Blur
) -> Row:
    reached, seconds, watts = plant.capped(batch, clock)
    return Row(
        phase=phase_of(batch),
        batch=batch,
        clock=clock,
        seconds=Seconds(seconds * float(rng.lognormal(0.0, blur.noise))),
        watts=Watts(watts * float(rng.lognormal(0.0, blur.power_noise))),
        capped=reached < clock,
        true_seconds=seconds,
        true_watts=watts,
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
