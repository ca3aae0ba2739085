"""Pure: what a kind of instance carries, and what it draws for it.

Theory of operation (papers §1.4, §2.7). A kind of instance (one engine profile: GPU, model, tensor
parallelism) is *enough* for a load if at maximum clock its prompts take at most `prompt_share` of its time
(above that, first tokens queue), its KV cache is at most `kv_share` full, a decode step is within TPOT, and
the batch fits. How many of them run is `control.sizing`; which pools share them is `control.provision`.
Missing input: limits that are not known do not bind; a kind without a model is left out by who asks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from control.fleet_plan import Configuration
from control.floor import Demand, cheapest, settle
from control.state import Limits
from joulegate.domain import Batch, EngineModel, RequestType
from joulegate.units import MegaHertz, Seconds, Watts


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to build an instance."""

    name: str
    model: EngineModel
    limits: Limits
    tp: int
    start: Seconds  # until it serves
    start_watts: Watts  # per GPU, meanwhile


@dataclass(frozen=True, slots=True)
class Stock:
    """Instances of one kind. Watts are per GPU."""

    kind: Kind
    have: int
    up: int
    stopped_watts: Watts
    session_tokens: float = 0.0  # in the prefix caches of one of them, on average

    @property
    def start_joules(self) -> float:
        return self.kind.start * max(0.0, self.kind.start_watts - self.stopped_watts) * self.kind.tp

    @property
    def stop_joules(self) -> float:
        """Of prefilling again what the sessions of one instance have cached."""
        model, chunk = self.kind.model, self.kind.limits.chunk_budget
        work, top = Batch(1, 0.0, chunk, 0.5 * chunk * chunk), model.clocks[-1]
        joules = model.iteration_time(work, top) * (model.watts(work, top) - model.idle_watts)
        return self.session_tokens / chunk * joules * self.kind.tp


@dataclass(frozen=True, slots=True)
class PlanRules:
    """Bounds of "enough"."""

    prompt_share: float = 0.6
    kv_share: float = 0.6
    full_speed: bool = False  # instances stay at maximum clock


def enough(
    kind: Kind,
    demand: Demand,
    count: int,
    tpot: Seconds,
    rules: PlanRules,
    clock: MegaHertz | None = None,
) -> bool:
    """Whether `count` instances keep the objectives at `clock` (None: maximum)."""
    model, limits = kind.model, kind.limits
    share = replace(demand, rate=demand.rate / count)
    top = clock if clock is not None else model.clocks[-1]
    steady = settle(model, share, top, limits.chunk_budget)
    if steady.in_system == float("inf"):
        return False
    batch = max(1, round(steady.in_system))
    context = batch * (demand.context_tokens + 0.5 * demand.output_tokens)
    if limits.max_num_seqs is not None and batch > 0.8 * limits.max_num_seqs:
        return False
    if limits.kv_capacity is not None and context > rules.kv_share * limits.kv_capacity:
        return False
    if model.iteration_time(Batch(batch, context), top) > 0.8 * tpot:
        return False
    return _prompt_share(kind, share, batch, context, top) <= rules.prompt_share


def _prompt_share(kind: Kind, demand: Demand, batch: int, context: float, clock: MegaHertz) -> float:
    """Share of time that iterations with prompts take."""
    tokens, chunk = demand.input_tokens, kind.limits.chunk_budget
    n = int(min(tokens, chunk))
    work = Batch(batch, context, n, 0.5 * n * n)
    iterations = max(1.0, tokens / chunk)
    return demand.rate * iterations * kind.model.iteration_time(work, clock)


def fewest(kind: Kind, demand: Demand, tpot: Seconds, rules: PlanRules) -> int | None:
    """The smallest count that is enough; None: no number is."""
    one = carries(kind, demand, tpot, rules)
    return max(1, ceil(demand.rate / one - 1e-9)) if one > 0.0 else None


def configurations(
    kind: Kind, demand: Demand, expected: float, tpot: Seconds, rules: PlanRules, levels: int = 10
) -> list[Configuration]:
    """One instance at so many levels, up to all it carries at maximum clock of the `expected` requests/s.

    Watts are those at its share of `demand`, which is what comes on average.
    """
    top, mean = carries(kind, demand, tpot, rules), demand.rate / expected
    loads = [top * level / levels for level in range(1, levels + 1)] if top > 0.0 else []
    watts = [watts_at(kind, replace(demand, rate=mean * load), 0.0, rules) for load in loads]
    return [
        Configuration(kind.name, kind.tp, load, kind.tp * each)
        for load, each in zip(loads, watts, strict=True)
    ]


def watts_at(kind: Kind, share: Demand, price: float, rules: PlanRules) -> Watts:
    """Per GPU, at the cheapest clock for what comes to one instance (`price`: see `control.floor`)."""
    model, chunk = kind.model, kind.limits.chunk_budget
    clock = model.clocks[-1] if rules.full_speed else cheapest(model, share, chunk, price)
    return Watts(settle(model, share, clock, chunk).watts)


def carries(
    kind: Kind, demand: Demand, tpot: Seconds, rules: PlanRules, clock: MegaHertz | None = None
) -> float:
    """Requests per second like `demand` up to which one instance is enough, to 0.5 %; 0: not even a few."""
    low, high = 1e-2, 1e3
    if not enough(kind, replace(demand, rate=low), 1, tpot, rules, clock):
        return 0.0
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        holds = enough(kind, replace(demand, rate=middle), 1, tpot, rules, clock)
        low, high = (middle, high) if holds else (low, middle)
    return low


# Pool borders worth comparing: which types share instances.
BORDERS: Mapping[str, Callable[[RequestType], str]] = {
    "one": lambda kind: "all",
    "by input": lambda kind: kind.input.name,
    "by output": lambda kind: kind.output.name,
    "nine": lambda kind: kind.name,
}


def grouped(demands: Mapping[RequestType, Demand], border: str) -> dict[str, Demand]:
    """The load of each pool under those borders: rates added, lengths averaged by request."""
    pools: dict[str, Demand] = {}
    for kind, demand in demands.items():
        name = BORDERS[border](kind)
        pools[name] = together(pools[name], demand) if name in pools else demand
    return pools


def together(one: Demand, other: Demand) -> Demand:
    """Both loads on the same instances."""
    rate = one.rate + other.rate
    share = one.rate / rate if rate > 0.0 else 0.5

    def mean(a: float, b: float) -> float:
        return share * a + (1.0 - share) * b

    return Demand(
        rate,
        mean(one.input_tokens, other.input_tokens),
        mean(one.context_tokens, other.context_tokens),
        mean(one.output_tokens, other.output_tokens),
    )
