"""Pure: the clock that serves a load with the least energy, at a price for delay.

Theory of operation. The cheapest clock of the *present iteration* is not the cheapest clock of the *load*:
slower clocks make bigger batches, and bigger batches are cheaper per token. With rate lambda, o output and
n prompt tokens a request, the batch settles where it produces tokens as fast as they are asked for:

    B = lambda o t(B, K, 0) / (1 - lambda (t(B, K, n) - t(B, K, 0)))

(one iteration in 1/lambda seconds carries a prompt). With rho = 1 - exp(-B) the share of time anything runs:

    watts(f) = lambda t(B, K, n) P(B, K, n) + (rho - lambda t(B, K, n)) P(B, K, 0) + (1 - rho) P_idle

Prompts queue for the engine as in an M/M/1 of load w = lambda t(B, K, n), w / (1 - w) of them on average.
Prompts so small that SMALL of them fit one iteration do not wait for one each: those that came during one
share the next, g = lambda t(B, K, g n) of them, and g / (1 - r) queue, where r is the share of the time that
they take by themselves. One iteration each would be more than there is time for where an engine serves many
short prompts with ease, and the answer maximum clock.
By Little's law B + w / (1 - w) requests in the system are lambda times the mean E2E: adding `price * B`
(watts per request in the system) trades energy against delay at the same rate at every load. That is how a
limit on slowdown is kept where it costs least: slow clocks at low load, where few requests wait, fast ones
at high load, where delay compounds. Price 0 is the energy optimum.

A load that a clock cannot serve settles nowhere (inf), and if none can serve it the answer is the highest.
Stale input: the caller searches again every few seconds; in between the floor is that of the load it saw.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from joulegate.domain import Batch, EngineModel
from joulegate.units import MegaHertz

ROUNDS = 4  # of the fixed point; it contracts by lambda o dt/dB, under 0.5 below saturation
SMALL = 4  # prompts that fit one iteration
STRIDE = 6  # coarse search over every sixth clock, then the neighbours of the best
STEP = 45.0  # MHz from one clock to the next that is tried around the last floor, if there are so many
SPAN = 105.0  # MHz over which the watts that a clock saves are taken


@dataclass(frozen=True, slots=True)
class Demand:
    """What arrives at one instance."""

    rate: float  # requests per second
    input_tokens: float  # uncached, mean
    context_tokens: float  # prompt with what is cached, mean
    output_tokens: float


def in_steps(demand: Demand, per_step: float) -> Demand:
    """The same load for an engine whose sequences get `per_step` tokens a step (speculative decoding).

    An answer takes fewer steps, which is what `output_tokens` stands for below; its context is as long.
    """
    steps = demand.output_tokens / per_step
    context = demand.context_tokens + 0.5 * (demand.output_tokens - steps)
    return replace(demand, context_tokens=context, output_tokens=steps)


@dataclass(slots=True)  # not frozen: made for every clock that is tried
class Steady:
    """Where a load settles at one clock. `in_system` and `watts` are inf where it never does."""

    in_system: float
    watts: float
    prompts: float  # share of the time that iterations with prompts take; if they are SMALL, prompts alone


def settle(model: EngineModel, demand: Demand, clock: MegaHertz, chunk: int, factor: float = 1.0) -> Steady:
    """Requests in the system, watts per GPU and the share of prompts at `clock`."""
    unstable = Steady(float("inf"), float("inf"), 1.0)
    prompt_tokens, iterations = _prompt_batch(demand, chunk)
    each = demand.context_tokens + 0.5 * demand.output_tokens
    small = SMALL * prompt_tokens <= chunk
    most, together = chunk / prompt_tokens if small else 1.0, 1.0  # prompts in one iteration
    prompts_per_s, tokens_per_s = demand.rate * iterations, demand.rate * demand.output_tokens
    plain = Batch()
    with_prompt = Batch(0, 0.0, prompt_tokens, 0.5 * prompt_tokens * prompt_tokens)
    batch, busy = 1.0, 0.5
    for _ in range(ROUNDS):
        _fill(max(1.0, batch / busy), each, plain, with_prompt)
        step = model.iteration_time(plain, clock) * factor
        extra = prompts_per_s / together * (model.iteration_time(with_prompt, clock) * factor - step)
        if extra >= 0.95:
            return unstable
        if small:
            together = min(most, max(1.0, prompts_per_s * step / (1.0 - extra)))
            _read(with_prompt, prompt_tokens * together)
        batch = min(4096.0, tokens_per_s * step / (1.0 - extra))
        busy = max(1e-6, 1.0 - exp(-batch))
    if batch >= 4096.0:
        return unstable
    _fill(max(1.0, batch / busy), each, plain, with_prompt)
    work = prompts_per_s * model.iteration_time(with_prompt, clock) * factor
    if work >= 0.95 * most:
        return unstable
    prompts = min(busy, work / together)
    watts = prompts * model.watts(with_prompt, clock) + (busy - prompts) * model.watts(plain, clock)
    watts += (1.0 - busy) * model.idle_watts
    load, share = (extra, extra) if small else (work, prompts)
    return Steady(batch + work / (1.0 - load), watts, share)


def cheapest(
    model: EngineModel,
    demand: Demand,
    chunk: int,
    price: float = 0.0,
    factor: float = 1.0,
    near: MegaHertz | None = None,
) -> MegaHertz:
    """The clock with the least watts + price * requests in the system; the highest if no clock is stable.

    `near`: where it was a moment ago; then only a few clocks around it are tried.
    """
    clocks = model.clocks

    def cost(i: int) -> float:
        steady = settle(model, demand, clocks[i], chunk, factor)
        return steady.watts + price * steady.in_system if steady.in_system < float("inf") else float("inf")

    last = len(clocks) - 1
    if near is None:
        tried = {i: cost(i) for i in range(last, -1, -STRIDE)}
        at = min(tried, key=lambda i: (tried[i], -i))
        steps = range(-STRIDE + 1, STRIDE)
    else:
        tried, at = {}, bisect_left(clocks, near)
        step = _within(clocks, STEP)
        steps = range(-4 * step, 4 * step + 1, step)
    tried |= {i: cost(i) for i in {min(last, max(0, at + step)) for step in steps} if i not in tried}
    return clocks[min(tried, key=lambda i: (tried[i], -i))]


def going_price(model: EngineModel, demand: Demand, chunk: int, stretch: float, factor: float = 1.0) -> float:
    """The price at which requests stay `stretch` times as long in the system as at maximum clock.

    Watts saved per request more in the system, at the clock where that ratio is reached. 0 if nothing is
    saved.
    """
    clocks = model.clocks
    best = settle(model, demand, clocks[-1], chunk, factor)
    if best.in_system == float("inf"):
        return 0.0

    def within(clock: MegaHertz) -> bool:
        return settle(model, demand, clock, chunk, factor).in_system <= stretch * best.in_system

    at = min(len(clocks) - 1, max(1, bisect_left(clocks, True, key=within)))
    low, high = at - 1, min(len(clocks) - 1, at - 1 + _within(clocks, SPAN))
    slow, fast = (settle(model, demand, clocks[i], chunk, factor) for i in (low, high))
    longer = slow.in_system - fast.in_system
    return max(0.0, (fast.watts - slow.watts) / longer) if 0.0 < longer < float("inf") else 0.0


def _within(clocks: Sequence[MegaHertz], span: float) -> int:
    """Steps from clock to clock in so many MHz, at least one."""
    return max(1, round(span * (len(clocks) - 1) / max(1, clocks[-1] - clocks[0])))


def _prompt_batch(demand: Demand, chunk: int) -> tuple[int, float]:
    """(tokens of one prompt iteration, such iterations per request)."""
    n = max(1.0, demand.input_tokens)
    return (int(n), 1.0) if n <= chunk else (chunk, n / chunk)


def _read(with_prompt: Batch, tokens: float) -> None:
    with_prompt.prefill_tokens = int(tokens)
    with_prompt.prefill_attention = 0.5 * tokens * tokens


def _fill(running: float, each: float, plain: Batch, with_prompt: Batch) -> None:
    """Both with so many sequences of `each` tokens: they are made once, not in every round."""
    plain.decoding = with_prompt.decoding = round(running)
    plain.context_tokens = with_prompt.context_tokens = running * each
