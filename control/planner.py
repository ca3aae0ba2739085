"""Pure: how many instances of which kind a load needs, and when to change that.

Theory of operation (papers §1.4, §2.7). A kind of instance (one engine profile: GPU, model, tensor
parallelism) is *enough* for a load if at maximum clock its prompts take at most `prompt_share` of its time
(above that, first tokens queue), its KV cache is at most `kv_share` full, a decode step is within TPOT, and
the batch fits. Among the counts that are enough, the one that draws least watts at each instance's own
cheapest clock is best: more instances run slower clocks, fewer waste less static power.

Changing is asymmetric, as with clocks. More at once, as soon as the load of the last minute, grown as it may
until an instance that is started now would serve, asks for it. How much that is, is learned (`Growth`): a
conversation grows by a tenth in two minutes, a burst of code doubles. Fewer only after the lower count has
been enough for `calm` seconds, and one at a time. The present count is kept while it saves less than the
change costs within the horizon.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from control.fleet_plan import Configuration
from control.floor import Demand, cheapest, settle
from control.state import Limits
from joulegate.domain import Batch, EngineModel, RequestType
from joulegate.units import Joules, MegaHertz, Seconds, Watts

COVER = 0.95  # share of the growth seen that is planned for
FIRST = 1.5  # growth that is taken for granted before much was seen
SEEN = 20  # looks after which FIRST counts no more
MEMORY = 180  # looks
LITTLE = 0.2  # of an instance: from less, growth means nothing


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
class PlanRules:
    """Bounds of "enough", and patience."""

    prompt_share: float = 0.6
    kv_share: float = 0.6
    calm: Seconds = Seconds(300.0)
    most: int = 64
    full_speed: bool = False  # instances stay at maximum clock, so the fewest are the cheapest


@dataclass(frozen=True, slots=True)
class Option:
    """So many instances of a kind under a load, at their cheapest clock."""

    kind: Kind
    count: int
    watts: float


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
    """The smallest count that is enough; None beyond `most`."""
    low, high = 1, rules.most
    if not enough(kind, demand, high, tpot, rules):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(kind, demand, middle, tpot, rules) else (middle + 1, high)
    return low


def best_count(
    kind: Kind, demand: Demand, tpot: Seconds, price: float, rules: PlanRules, growth: float = 1.0
) -> Option | None:
    """The count with the least watts among the fewest that is enough and the few above it.

    Enough for `growth` times the demand; watts at the demand.
    """
    least = fewest(kind, replace(demand, rate=growth * demand.rate), tpot, rules)
    if least is None:
        return None
    options = [
        _option(kind, demand, n, price, rules) for n in range(least, least + max(2, ceil(0.5 * least)) + 1)
    ]
    return min(options, key=lambda option: (option.watts, option.count))


def best_kind(
    kinds: Sequence[Kind], demand: Demand, tpot: Seconds, price: float, rules: PlanRules
) -> Option | None:
    """The kind that serves a load with the least watts; None if none can."""
    found = [best_count(kind, demand, tpot, price, rules) for kind in kinds]
    options = [option for option in found if option is not None]
    return min(options, key=lambda option: option.watts) if options else None


def _option(kind: Kind, demand: Demand, count: int, price: float, rules: PlanRules) -> Option:
    share, clock = replace(demand, rate=demand.rate / count), kind.model.clocks[-1]
    if not rules.full_speed:
        clock = cheapest(kind.model, share, kind.limits.chunk_budget, price)
    steady = settle(kind.model, share, clock, kind.limits.chunk_budget)
    return Option(kind, count, count * kind.tp * steady.watts)


def configurations(
    kind: Kind, demand: Demand, tpot: Seconds, rules: PlanRules, clocks: int = 10
) -> list[Configuration]:
    """What one instance carries of a load like `demand` at each of so many clocks, and its watts then."""
    ladder = kind.model.clocks
    made = []
    for i in range(clocks):
        clock = ladder[round(i * (len(ladder) - 1) / max(1, clocks - 1))]
        rate = _most(kind, demand, tpot, rules, clock)
        if rate > 0.0:
            steady = settle(kind.model, replace(demand, rate=rate), clock, kind.limits.chunk_budget)
            made.append(Configuration(kind.name, kind.tp, rate, kind.tp * steady.watts))
    return made


def _most(kind: Kind, demand: Demand, tpot: Seconds, rules: PlanRules, clock: MegaHertz) -> float:
    """Requests per second up to which one instance is enough, to 2 %; 0: not even a few."""
    low, high = 1e-2, 1e3
    if not enough(kind, replace(demand, rate=low), 1, tpot, rules, clock):
        return 0.0
    while high / low > 1.02:
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


class Growth:
    """How many times the load may grow before an instance that is started now serves. Learned from the past.

    The share `COVER` of what was seen lies below; before much was seen it is taken to be `FIRST`.
    """

    def __init__(self, kind: Kind, every: Seconds) -> None:
        """`every`: seconds between two looks."""
        ahead = ceil((kind.start + every) / every) + 2  # rates are means over a quarter of a minute
        self._recent: deque[float] = deque(maxlen=ahead + 1)
        self._grown: deque[float] = deque(maxlen=MEMORY)

    def see(self, work: float) -> None:
        """The load of this moment, in instances."""
        self._recent.append(work)
        if len(self._recent) == self._recent.maxlen:
            before, *since = self._recent
            self._grown.append(max(since) / max(LITTLE, before))

    @property
    def ratio(self) -> float:
        """At least 1."""
        seen = sorted([*self._grown, *[FIRST] * max(0, SEEN - len(self._grown))])
        return max(1.0, seen[min(len(seen) - 1, int(COVER * len(seen)))])


def work_of(kind: Kind, demand: Demand, tpot: Seconds, rules: PlanRules) -> float:
    """A load in instances, not rounded."""
    return demand.rate / max(1e-3, _most(kind, demand, tpot, rules, kind.model.clocks[-1]))


@dataclass(frozen=True, slots=True)
class Scale:
    """What the scaling law remembers: since when fewer would do."""

    enough_since: Mapping[int, float]  # count -> when it became enough


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    target: int
    sentence: str


def scale(
    kind: Kind,
    count: int,
    demand: Demand,
    tpot: Seconds,
    price: float,
    memory: Scale,
    rules: PlanRules,
    now: Seconds,
    growth: float,
) -> tuple[ScaleDecision, Scale]:
    """How many instances there should be. `demand`: of the last minute; `growth`: what it may become."""
    option = best_count(kind, demand, tpot, price, rules, growth)
    wanted = rules.most if option is None else option.count
    if wanted > count:
        sentence = f"{wanted} x {kind.name}: {demand.rate:.1f} requests/s need more than {count}"
        return ScaleDecision(wanted, sentence), Scale({})
    if wanted == count:
        return ScaleDecision(count, f"{count} x {kind.name} fit {demand.rate:.1f} requests/s"), Scale({})
    since = {n: memory.enough_since.get(n, now) for n in range(wanted, count)}
    if now - since[count - 1] < rules.calm:
        text = f"{count} x {kind.name}: {wanted} would do, not for long enough yet"
        return ScaleDecision(count, text), Scale(since)
    if not pays(kind, demand, count, price, rules):
        return ScaleDecision(count, f"{count} x {kind.name}: stopping one would not pay"), Scale(since)
    left = {n: at for n, at in since.items() if n < count - 1}
    text = f"{count - 1} x {kind.name}: enough for {rules.calm:.0f} s"
    return ScaleDecision(count - 1, text), Scale(left)


def pays(kind: Kind, demand: Demand, count: int, price: float, rules: PlanRules) -> bool:
    """Whether one instance fewer saves more until the next change than starting it again will cost."""
    here, fewer = (_option(kind, demand, n, price, rules) for n in (count, count - 1))
    saved = here.watts - fewer.watts
    return saved * rules.calm > start_joules(kind)


def start_joules(kind: Kind) -> Joules:
    """Energy of one start, drawn before the instance serves."""
    return Joules(kind.start * kind.start_watts * kind.tp)
