"""Pure: an engine profile (format engine-profile/1): how fast and how hungry an engine on a GPU type is."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from joulegate.units import MegaHertz


@dataclass(frozen=True, slots=True)
class LatencyCoefficients:
    """Seconds per unit of work at maximum clock; the formula is in `predictor.physics`."""

    p: float
    m0_s: float
    m1_s_per_ctx_token: float
    c0_s: float
    c1_s_per_seq: float
    pc1_s_per_token: float
    pc2_s_per_token2: float
    h0_s: float
    h1_s_per_seq: float
    h2_s_per_token: float


@dataclass(frozen=True, slots=True)
class PowerCoefficients:
    """Watts per GPU and the shares of peak that cause them; the formula is in `predictor.physics`."""

    p_idle_w: float
    p_static_w: float
    d0_w: float
    dm_w: float
    dc_w: float
    u_sat: float
    s_fixed_share: float
    hm_w: float
    vmin: float
    knee: float
    us_w_s: float
    us_kv_s: float
    us_tok_s: float
    us_att_s: float
    tdp_w: float
    p_off_owned_w: float
    p_start_w: float


@dataclass(frozen=True, slots=True)
class EngineLimits:
    kv_capacity_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Actuation:
    clock_switch_s: float
    instance_start_s: float
    instance_cold_start_s: float
    sleep_s: float
    wake_s: float


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One (GPU, model, tensor-parallel size). `provenance` says what is measured, fitted or assumed."""

    name: str
    gpu: str
    model: str
    tp: int
    clocks: tuple[MegaHertz, ...]  # ascending
    max_clock: MegaHertz
    validated_clocks: tuple[MegaHertz, MegaHertz]  # the range the source data cover
    graph_batches: tuple[int, ...]  # CUDA graph sizes a decode batch is padded to
    latency: LatencyCoefficients
    power: PowerCoefficients
    engine: EngineLimits
    actuation: Actuation


def parse_profile(document: Mapping[str, Any]) -> EngineProfile:
    """Build a profile from decoded JSON. Raises ValueError naming the missing or wrong key."""
    if not isinstance(document, Mapping):
        raise ValueError(f"an object is expected, not {type(document).__name__}")
    if document.get("format") != "engine-profile/1":
        raise ValueError(f"format: expected 'engine-profile/1', got {document.get('format')!r}")
    try:
        validated = _whole("validated_clock_range_mhz", document["validated_clock_range_mhz"])
        if len(validated) != 2:
            raise ValueError(f"validated_clock_range_mhz: {validated}, expected the lowest and the highest")
        clocks = tuple(MegaHertz(clock) for clock in sorted(_whole("clocks_mhz", document["clocks_mhz"])))
        if not clocks or clocks[0] <= 0:
            raise ValueError("clocks_mhz: at least one, each above 0")
        profile = EngineProfile(
            name=str(document["name"]),
            gpu=str(document["gpu"]),
            model=str(document["model"]),
            tp=_whole("tp", [document["tp"]])[0],
            clocks=clocks,
            max_clock=MegaHertz(_whole("f_max_mhz", [document["f_max_mhz"]])[0]),
            validated_clocks=(MegaHertz(validated[0]), MegaHertz(validated[1])),
            graph_batches=tuple(sorted(_whole("cuda_graph_batches", document["cuda_graph_batches"]))),
            latency=LatencyCoefficients(**_numbers(document["latency"], LatencyCoefficients, float)),
            power=PowerCoefficients(**_numbers(document["power"], PowerCoefficients, float)),
            engine=EngineLimits(**_numbers(document["engine"], EngineLimits, int)),
            actuation=Actuation(**_numbers(document["actuation"], Actuation, float)),
        )
    except KeyError as error:
        raise ValueError(f"profile {document.get('name', '?')}: key {error.args[0]!r} is missing") from error
    except TypeError as error:
        raise ValueError(f"profile {document.get('name', '?')}: {error}") from error
    return _checked(profile)


def _checked(profile: EngineProfile) -> EngineProfile:
    """`profile`, if its formulas can be worked out. Raises ValueError naming the key."""
    latency, power, engine = profile.latency, profile.power, profile.engine
    above_zero = {
        "tp": profile.tp,
        "f_max_mhz": profile.max_clock,
        "p": latency.p,
        "u_sat": power.u_sat,
        "tdp_w": power.tdp_w,
        "p_static_w + d0_w + dm_w + dc_w + hm_w": power.p_static_w
        + power.d0_w
        + power.dm_w
        + power.dc_w
        + power.hm_w,
        "kv_capacity_tokens": engine.kv_capacity_tokens,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "m0_s + c0_s + h0_s": latency.m0_s + latency.c0_s + latency.h0_s,
    }
    for name, value in above_zero.items():
        if not value > 0:
            raise ValueError(f"{name}: {value}, expected more than 0")
    if power.knee >= 1.0:
        raise ValueError(f"knee: {power.knee}, expected less than 1")
    return profile


def _whole(name: str, values: Any) -> list[int]:
    """A list of whole numbers. Raises ValueError for anything else."""
    try:
        return [int(each) for each in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {values!r}, expected whole numbers") from error


def _numbers(section: Mapping[str, Any], shape: type, number: type) -> dict[str, Any]:
    """The numbers of a section. Raises KeyError, and ValueError for one that is negative or none at all."""
    made = {}
    for name in (field.name for field in fields(shape)):
        try:
            made[name] = number(section[name])
        except (TypeError, ValueError, OverflowError):
            made[name] = -1
        if not 0 <= made[name] < float("inf"):
            raise ValueError(f"{name}: {section[name]!r}, expected a number of 0 or more")
    return made
