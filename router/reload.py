"""Shell: take over a changed gateway.yaml without dropping a request.

What a running gateway can take over is taken over at once; the rest is named as needing a restart. A file
with an error changes nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from joulegate.settings.load import load
from joulegate.units import MegaHertz, Seconds
from router.build_fleet import pool_rules
from router.elastic import settle
from router.keys import Keys
from router.runtime import Runtime, build_keys, key_limits, power_rules

APPLIED = (
    "auth.*",
    "objectives.*",
    "models.*.pools.*.mode",
    "models.*.pools.*.static_clock_mhz",
    "models.*.pools.*.objectives.*",
    "models.*.pools.*.overload",
    "models.*.pools.*.queue_limit",
    "models.*.pools.*.power_priority",
    "power.*",
    "predictor.use_max_tokens",
)


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did. `refused` is the file's errors: then nothing was applied."""

    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    refused: str = ""

    def picture(self) -> dict[str, Any]:
        return {
            "applied": list(self.applied),
            "needs_restart": list(self.needs_restart),
            "refused": self.refused,
        }


@dataclass(slots=True)
class Reloader:
    """Reads `path` again for `runtime`; `keys_to` are told the new keys.

    `renew`: reads the listener's certificate again; whether it was another. Raises UserError for a bad one.
    """

    path: Path
    runtime: Runtime
    keys_to: list["TakesKeys"] = field(default_factory=list)
    renew: Callable[[], bool] = lambda: False
    started_with: settings_of.Gateway = field(init=False)

    def __post_init__(self) -> None:
        self.started_with = self.runtime.settings

    def reload(self) -> ReloadReport:
        condition = self.runtime.condition
        try:
            new = load(self.path, settings_of.Gateway)
            keys = build_keys(new)
            renewed = self.renew()
        except UserError as error:
            condition.reload_successful = False
            return ReloadReport(refused=error.message)
        asked = new.model_dump()
        since_last = _changes(self.runtime.settings.model_dump(), asked)
        since_start = _changes(self.started_with.model_dump(), asked)
        self._apply(new, keys)
        self.runtime.settings = new
        condition.reload_successful, condition.reloaded_at = True, time.time()
        applied = [key for key in since_last if _applies(key)] + ["listen.tls"] * renewed
        return ReloadReport(
            applied=tuple(sorted(applied)),
            needs_restart=tuple(sorted(key for key in since_start if not _applies(key))),
        )

    def _apply(self, new: settings_of.Gateway, keys: Keys) -> None:
        runtime = self.runtime
        runtime.keys = keys
        runtime.power.keeper.rules = power_rules(new.power)
        runtime.power.alarm = new.power.emergency_file
        runtime.gate.limits.change(key_limits(new), Seconds(time.monotonic()))
        for taker in self.keys_to:
            taker.keys = keys
        for section in new.models:
            model = runtime.fleet.models.get(section.name)
            if model is None:
                continue
            model.use_max_tokens = new.predictor.use_max_tokens
            for part in section.pools:
                pool = model.pools.get(part.name)
                listed = {name for name, member in model.members.items() if member.home == part.name}
                if pool is None or {instance.name for instance in part.instances} != listed:
                    continue
                pool.mode, pool.queue_limit = part.mode, part.queue_limit
                pool.power_priority = part.power_priority
                clock = part.static_clock_mhz
                pool.static_clock = None if clock is None else MegaHertz(clock)
                rules = pool_rules(new, part)
                if rules.types == pool.home.types:
                    pool.home = rules
            settle(model)
        runtime.tick.wake()


class TakesKeys(Protocol):
    """Anything with `keys`: the relay."""

    keys: Keys


def _applies(key: str) -> bool:
    return any(
        fnmatchcase(key, pattern) or fnmatchcase(key, pattern.removesuffix(".*")) for pattern in APPLIED
    )


def _changes(old: object, new: object, at: str = "") -> Iterator[str]:
    """Paths of the values that differ, as `models.0.pools.1.mode`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            yield from _changes(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _changes(one, other, f"{at}.{index}")
    elif old != new:
        yield at
