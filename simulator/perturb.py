"""Pure: a plant that is not quite its profile, so that a controller never meets its own model by luck."""

from dataclasses import replace
from hashlib import blake2b

from joulegate.engine_profile import EngineProfile

SPREAD = 0.1  # hidden parameters are off by up to this share
LATENCY = (
    "m0_s",
    "m1_s_per_ctx_token",
    "c0_s",
    "c1_s_per_seq",
    "pc1_s_per_token",
    "pc2_s_per_token2",
    "h0_s",
    "h1_s_per_seq",
    "h2_s_per_token",
)
POWER = ("p_static_w", "d0_w", "dm_w", "dc_w", "hm_w")


def perturbed(profile: EngineProfile, seed: int) -> EngineProfile:
    """The profile with every latency and power coefficient scaled by its own factor in 1 +- SPREAD.

    The same seed gives the same plant. What an operator can read (clocks, TDP, idle power, limits) stays.
    """
    latency = {name: getattr(profile.latency, name) * _factor(seed, name) for name in LATENCY}
    power = {name: getattr(profile.power, name) * _factor(seed, name) for name in POWER}
    return replace(
        profile, latency=replace(profile.latency, **latency), power=replace(profile.power, **power)
    )


def _factor(seed: int, name: str) -> float:
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return 1.0 + SPREAD * (2.0 * int.from_bytes(digest, "big") / 2**64 - 1.0)
