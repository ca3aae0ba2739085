"""Pure: proof that an instance runs on the GPUs its settings name: make it work, see whose watts rise.

Two windows are compared: before, in which the instance had nothing to do, and during, in which it had. Its
GPUs must all rise, and no other that had no reason to. GPUs of instances that were at work themselves prove
nothing and disprove nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from joulegate.units import Seconds, Watts

RISE = Watts(25.0)  # at least, and
RISE_SHARE = 0.25  # of what was drawn before: a decode step of one sequence takes well over it


class Standing(Enum):
    """What is known of an instance's GPUs."""

    UNPROVEN = "unproven"  # not tried yet, or not to be told apart
    PROVEN = "proven"
    WRONG = "wrong"  # others work when it does


@dataclass(frozen=True, slots=True)
class Proof:
    state: Standing = Standing.UNPROVEN
    why: str = "not tried yet, as it was never idle for a third of a second"
    at: Seconds = Seconds(float("-inf"))
    tries: int = 0


def judge(
    mine: frozenset[str],
    before: Mapping[str, Watts],
    during: Mapping[str, Watts],
    others_at_work: frozenset[str],
    proof: Proof,
    now: Seconds,
) -> Proof:
    """The proof after one try. `before` and `during`: mean watts of every GPU of the node."""
    known = before.keys() & during.keys()
    rose = {gpu for gpu in known if during[gpu] - before[gpu] >= max(RISE, RISE_SHARE * before[gpu])}
    strangers = rose - mine - others_at_work
    tries = proof.tries + 1
    if missing := mine - known:
        return Proof(Standing.UNPROVEN, f"the agent does not show {_named(missing)}", now, tries)
    if mine <= rose and not strangers:
        return Proof(Standing.PROVEN, f"{_named(mine)} rose when it worked", now, tries)
    if strangers and not mine & rose:
        why = f"{_named(strangers)} rose when it worked, not {_named(mine)}"
        return Proof(Standing.WRONG, why, now, tries)
    if strangers:
        why = f"{_named(strangers)} rose too when it worked"
    else:
        why = f"{_named(mine - rose)} did not rise when it worked"
    return Proof(Standing.UNPROVEN, why, now, tries)


def _named(gpus: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(gpus))
