"""Pure: did the GPU do what it was told?

Theory of operation. A target is a ceiling. A clock *below* it with a reason (idle, thermal, power) is the
board's own business: hold, and tell the latency model. Below it without a reason once it has settled: the
model must use what is seen, and the agent is asked again. A clock *above* it means that somebody took the
ceiling away or that the write was lost: assert it once or twice, then give up lowering here (fail up): an
actuator that does not act is not relied on. Without a target there is nothing to judge; what an agent no
longer reports is stale, and the governor answers that before this is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from joulegate.units import MegaHertz, Seconds

BOARD_REASONS = frozenset(
    {"idle", "power_cap", "power_brake", "thermal", "hw_slowdown", "sw_thermal", "sync_boost"}
)


class Action(Enum):
    SETTLING = "settling"  # the write is too young to judge
    OK = "ok"
    HOLD = "hold"  # lower for a reason of the board
    REASSERT = "reassert"
    FAIL_UP = "fail_up"  # clocks go back to default here


@dataclass(frozen=True, slots=True)
class VerifyRules:
    tolerance: MegaHertz = MegaHertz(30)  # two steps of an H100
    settle: Seconds = Seconds(0.5)
    attempts: int = 3  # assertions before failing up


@dataclass(frozen=True, slots=True)
class Verdict:
    action: Action
    sentence: str
    seen: MegaHertz  # what the latency model should assume
    attempts: int  # to pass to the next call


def judge(
    target: MegaHertz | None,
    seen: MegaHertz,
    reasons: Sequence[str],
    written: Seconds,
    attempts: int,
    rules: VerifyRules,
    now: Seconds,
) -> Verdict:
    """Compare one GPU's clock with its ceiling. `attempts`: assertions made since it was last right."""
    if target is None or now - written < rules.settle:
        action = Action.OK if target is None else Action.SETTLING
        return Verdict(action, f"{seen} MHz, ceiling {_mhz(target)}", seen, attempts)
    if seen > target + rules.tolerance:
        if attempts >= rules.attempts:
            text = (
                f"{seen} MHz above its ceiling {target} MHz after {attempts} assertions: clocks go to default"
            )
            return Verdict(Action.FAIL_UP, text, seen, attempts)
        text = f"{seen} MHz above its ceiling {target} MHz: asserted again"
        return Verdict(Action.REASSERT, text, seen, attempts + 1)
    if seen < target - rules.tolerance:
        why = sorted(BOARD_REASONS.intersection(reasons))
        text = f"{seen} MHz under its ceiling {target} MHz: {', '.join(why) or 'no reason given'}"
        return Verdict(Action.HOLD, text, seen, 0)
    return Verdict(Action.OK, f"{seen} MHz as asked", seen, 0)


def _mhz(clock: MegaHertz | None) -> str:
    return "none" if clock is None else f"{clock} MHz"
