"""Pure: a saving measured while the governor runs: a share of instance-time is held back at default clocks.

Theory of operation. Time is cut into blocks; a hash of (seed, instance, block) decides which blocks are held
back, so that every replica agrees without talking and no load can influence the draw. Load therefore is the
same on average in both groups, and the difference of their mean power is the saving, whatever a model thinks.

Load differs from block to block far more than the saving is large, so power is first adjusted for the work
done in the block (CUPED, Deng et al. 2013): y' = y - theta (w - mean w), theta from the pooled within-group
covariance. The adjustment cannot bias the difference, since the draw does not depend on the work. What
settles at the start of a block is left out. The interval is Welch's for the difference, by the delta method
for the ratio. Missing input: blocks without measured time do not count, and below LEAST_BLOCKS in either
group there is no figure at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import sqrt

from joulegate.student import student
from joulegate.units import Joules, Seconds

LEAST_BLOCKS = 8  # in each group, before anything is claimed


@dataclass(frozen=True, slots=True)
class HoldbackRules:
    share: float  # of instance-time, 0 to 1
    block: Seconds = Seconds(30.0)
    settle: Seconds = Seconds(2.0)  # at the start of a block, not counted
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """One block of one instance, as measured after it settled."""

    held: bool
    seconds: Seconds
    joules: Joules
    work: float  # any measure that is the same at every clock: weighted tokens


@dataclass(frozen=True, slots=True)
class MeasuredSaving:
    """Share of energy saved against default clocks, with its 95 % interval."""

    ratio: float
    low: float
    high: float
    blocks_held: int
    blocks_governed: int


def number(rules: HoldbackRules, now: Seconds) -> int:
    """Of the block that `now` (unix time: replicas must agree) lies in."""
    return int(now // rules.block)


def is_held(rules: HoldbackRules, instance: str, block: int) -> bool:
    """Whether `instance` stays at default clocks in this block."""
    text = f"{rules.seed}/{instance}/{block}".encode()
    draw = int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2.0**64
    return draw < rules.share


def settled(rules: HoldbackRules, now: Seconds) -> bool:
    """Whether what happens now counts."""
    return now % rules.block >= rules.settle


def measure(blocks: Sequence[Block]) -> MeasuredSaving | None:
    """The saving over `blocks`; None while either group is too small to say anything."""
    held = [b for b in blocks if b.held and b.seconds > 0]
    governed = [b for b in blocks if not b.held and b.seconds > 0]
    if len(held) < LEAST_BLOCKS or len(governed) < LEAST_BLOCKS:
        return None
    theta, centre = _adjustment(held, governed)
    one, other = _adjusted(held, theta, centre), _adjusted(governed, theta, centre)
    base, base_var = _mean(one)
    kept, kept_var = _mean(other)
    if base <= 0.0:
        return None
    ratio = 1.0 - kept / base
    spread = sqrt(kept_var / base**2 + base_var * kept**2 / base**4)
    freedom = _welch(base_var, len(held), kept_var, len(governed))
    reach = student(freedom) * spread
    return MeasuredSaving(ratio, ratio - reach, ratio + reach, len(held), len(governed))


def _adjustment(held: Sequence[Block], governed: Sequence[Block]) -> tuple[float, float]:
    """(theta, mean work rate of all blocks)."""
    covariance = variance = 0.0
    for group in (held, governed):
        powers, rates = [_watts(b) for b in group], [_rate(b) for b in group]
        mean_power, mean_rate = sum(powers) / len(group), sum(rates) / len(group)
        covariance += sum((p - mean_power) * (r - mean_rate) for p, r in zip(powers, rates, strict=True))
        variance += sum((r - mean_rate) ** 2 for r in rates)
    rates = [_rate(b) for b in (*held, *governed)]
    return (covariance / variance if variance > 0.0 else 0.0), sum(rates) / len(rates)


def _adjusted(group: Sequence[Block], theta: float, centre: float) -> list[float]:
    return [_watts(b) - theta * (_rate(b) - centre) for b in group]


def _watts(block: Block) -> float:
    return block.joules / block.seconds


def _rate(block: Block) -> float:
    return block.work / block.seconds


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the variance of that mean."""
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)


def _welch(a: float, n: int, b: float, m: int) -> float:
    """Degrees of freedom of a difference of means with variances a and b over n and m values."""
    if a + b <= 0.0:
        return float(n + m - 2)
    return (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))
