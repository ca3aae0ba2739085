"""Pure: what the engine profiles that a gateway.yaml names say against it."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.settings.base import Fault, Route

Read = Callable[[Path], bytes]  # raises OSError
MADE_BY = "`joulegate profile` and `joulegate train latency` make one; see configs/profiles/README.md"
ARCHIVE = b"PK"  # what `train latency` writes begins so: it is read where it is used


@dataclass(frozen=True, slots=True)
class Named:
    """An instance with a profile, and what is promised of it."""

    at: Route  # the instance
    profile: Path
    tensor_parallel: int
    tpot: float  # seconds
    tpot_at: Route  # where that is written


def misfits(named: Iterable[Named], read: Read) -> Iterator[Fault]:
    """Profiles that are none, or of another number of GPUs; by those that fit, objectives no clock meets."""
    for one in named:
        try:
            content = read(one.profile)
            profile = None if content.startswith(ARCHIVE) else parse_profile(json.loads(content))
        except (OSError, ValueError, RecursionError) as error:
            yield Fault((*one.at, "profile"), f"no engine profile: {error}", MADE_BY)
            continue
        if profile is not None:
            yield from _misfit(one, profile)


def _misfit(one: Named, profile: EngineProfile) -> Iterator[Fault]:
    if profile.tp != one.tensor_parallel:
        yield Fault(
            (*one.at, "profile"),
            f"is of {profile.model} on {profile.tp} GPUs, and tensor_parallel is {one.tensor_parallel}",
            "name the profile of this engine, or set tensor_parallel and list its GPUs",
        )
        return
    # one sequence at the highest clock: what is left of the formula in `predictor.physics`, and no more
    least = profile.latency.h0_s + max(profile.latency.m0_s, profile.latency.c0_s)
    if one.tpot < least:
        said = f"no clock meets it: {profile.name} takes {least * 1e3:.1f} ms a token at its highest"
        # the model may be wrong: nothing is refused
        yield Fault(one.tpot_at, said, "every request would count as missed", doubt=True)
