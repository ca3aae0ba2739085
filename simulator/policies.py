"""Pure: the policies that `joulegate simulate` compares.

- max-clock: first come first served at maximum clock, least loaded instance: the baseline
- single-pool: the same on as many instances as the peak of the learning half asks for, without hindsight
- multi-pool: DynamoLLM's nine pools (papers §1.1), each for the peak of its own type, maximum clock
- scale-inst, scale-shard, scale-freq: one knob each on one pool: the number of instances follows the load;
  the GPUs of the baseline cut into the best tensor-parallel size; the clocks
- static-best: the baseline at one clock, the cheapest whose saving counts on the half it is tuned on
- throttllem: throttLL'eM's laws (papers §2): first come first served, lowest clock that keeps TPOT and E2E
- joulegate: the product's laws, predicted lengths, prices learned on the other half; with `builds`, the kind
  and the number of instances too
- joulegate-slowdown: the same with max_slowdown
- oracle: the product's laws with true lengths, prices learned on the very half that is scored; where
  instances come and go, it knows the load until one that is started serves
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from control.admission import AdmissionRules
from control.floor import Demand, settle
from control.governor import GovernorRules
from control.pick import Rng
from control.planner import BORDERS, Kind, PlanRules, Stock, carries, enough, fewest
from control.sizing import Loaded, best_count, best_kind
from control.sizing import Terms as SizeTerms
from joulegate.domain import Cuts, Objectives, RequestType
from joulegate.settings.plan import Plan
from joulegate.settings.scenario import OURS
from joulegate.units import Seconds, Watts
from predictor.length import HistoryPredictor
from simulator.cluster import ALL_TYPES, Cluster, Knowledge, Laws, Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.results import Pooled, Run, joules_per_token, why_not
from simulator.scaling import Elastic, Scaling
from simulator.score import Alone, Scorer
from simulator.station import limits_of
from simulator.streams import Kept
from simulator.workload import Bools, Census, Foresight, Rows, Stream, by_type, census

BUILDERS = ("joulegate", "joulegate-slowdown", "oracle")
EVERYTHING = 1e6  # share of a TTFT objective: the engine's queue takes all prompts at once
NO_OBJECTIVE = Seconds(3600.0)
DRAWS = 100_003  # random numbers that are drawn once and then come again: one by one they cost a microsecond


@dataclass(frozen=True, slots=True)
class Case:
    """One seed of a scenario: where a policy learns, and where it is scored."""

    seed: int
    learn: Stream
    score: Stream


@dataclass(frozen=True, slots=True)
class Terms:
    """What the policies of a scenario are told besides its load."""

    setup: Setup  # with the objectives that are scored
    e2e: Seconds  # E*, which throttLL'eM aims at
    max_slowdown: float
    builds: tuple[EngineCosts, ...] = ()  # what instances may be built from; empty: the fleet is as it is
    border: str = "one"  # of the pools that those are divided among
    elastic: Elastic | None = None  # None: those pools stay apart


def run_policy(name: str, case: Case, terms: Terms, static_clock: float | None) -> Run:
    """One policy on one seed. `static_clock`: of static-best."""
    setup = terms.setup
    scorer = Scorer(setup.objectives, setup.cuts, Alone(setup.costs[0].model))
    top = setup.costs[0].profile.max_clock
    if name == "static-best" and static_clock is not None:
        return run_fixed(case.score, setup, static_clock, scorer)
    if name in ("max-clock", "static-best"):
        return run_fixed(case.score, setup, top, scorer)
    if name in ("single-pool", "scale-shard"):
        fleet = provisioned(terms, case.learn) if name == "single-pool" else resharded(terms, case.learn)
        return run_fixed(case.score, fleet, top, scorer)
    return _steered(name, case, terms, scorer)


def _steered(name: str, case: Case, terms: Terms, scorer: Scorer) -> Run:
    laws = _laws(name, terms.setup)
    steered = replace(terms.setup, objectives=_aims(name, terms))
    learn = case.score if name == "oracle" else case.learn
    if name == "multi-pool":
        steered = nine_pools(terms, case.learn)
    builds = terms.setup.costs[:1] if name == "scale-inst" else terms.builds if name in BUILDERS else ()
    if builds:
        steered, laws = _built(steered, laws, builds, learn)
    if laws.scaling is not None and name in OURS and terms.border != "one":
        steered, laws = _divided(steered, laws, laws.scaling, terms, learn)
    knowledge = Knowledge(HistoryPredictor(steered.cuts))
    if name not in ("throttllem", "multi-pool"):
        Cluster(steered, laws, knowledge, _draws(case.seed)).run(learn)
    if laws.true_lengths:
        knowledge.planned.standing = ()  # it begins as it did
    return Cluster(steered, laws, knowledge, _draws(case.seed)).run(case.score, scorer)


def _built(setup: Setup, laws: Laws, builds: tuple[EngineCosts, ...], learn: Stream) -> tuple[Setup, Laws]:
    """The kind of instance that serves the mean load of the learning half with the least watts, scaled."""
    brings = census(learn)
    demand = brings.demand(brings.count / learn.span)
    rules, plan = PlanRules(full_speed=laws.governor.static_clock is not None), Plan()
    stocks = [stock_of(costs, gpus_of(setup)) for costs in builds]
    found = best_kind(stocks, demand, SizeTerms(setup.objectives.tpot, rules=rules))
    if found is None:
        return setup, laws
    stock, count = found
    if laws.true_lengths:
        count = _opening(stock, Foresight(learn), SizeTerms(setup.objectives.tpot, rules=rules))
    costs = next(c for c in builds if c.profile.name == stock.kind.name)
    scaling = Scaling(stock, rules, Seconds(plan.calm_s), plan.at_once)
    return replace(setup, costs=(costs,) * count), replace(laws, scaling=scaling)


def _divided(setup: Setup, laws: Laws, scaling: Scaling, terms: Terms, learn: Stream) -> tuple[Setup, Laws]:
    """All instances that there are, running, each in the pool whose busiest minute lacks it most."""
    kind, tpot, needs = scaling.stock.kind, setup.objectives.tpot, dict[str, float]()
    for name, mine in _parts(learn, setup.cuts, terms.border).items():
        rate = carries(kind, _peak(mine), tpot, scaling.rules) if mine.count else 0.0
        needs[name] = mine.peak / rate if rate > 0.0 else 0.0
    largest = [*needs][-1]
    counts = {name: int(name == largest) for name in needs}
    for _ in range(scaling.stock.have - 1):
        counts[max(needs, key=lambda name: needs[name] / (counts[name] + 0.5))] += 1
    places = tuple(name for name, count in counts.items() for _ in range(count))
    divided = replace(setup, border=terms.border, costs=setup.costs[:1] * scaling.stock.have, places=places)
    return divided, replace(laws, scaling=replace(scaling, elastic=terms.elastic))


def _parts(stream: Stream, cuts: Cuts, border: str) -> dict[str, Census]:
    """What comes to each pool, smaller ones first."""
    kinds = dict[str, list[RequestType]]()
    for kind in sorted(ALL_TYPES, key=lambda k: (k.input, k.output)):
        kinds.setdefault(BORDERS[border](kind), []).append(kind)
    return {name: census(Kept(stream, OfTypes(tuple(mine), cuts))) for name, mine in kinds.items()}


@dataclass(frozen=True, slots=True)
class OfTypes:
    """Which requests are of one of some types."""

    kinds: tuple[RequestType, ...]
    cuts: Cuts

    def __call__(self, rows: Rows) -> Bools:
        inputs, outputs = by_type(rows, self.cuts)
        mine = [(inputs == kind.input) & (outputs == kind.output) for kind in self.kinds]
        found: Bools = np.any(mine, axis=0)
        return found


def _opening(stock: Stock, foresight: Foresight, terms: SizeTerms) -> int:
    """What the oracle begins with: enough until what it starts then serves."""
    soon = foresight.mean(0.0, stock.kind.start)
    return best_count(Loaded((stock,), soon, terms), foresight.most(0.0, stock.kind.start, soon))


def stock_of(costs: EngineCosts, gpus: int) -> Stock:
    """All of so many GPUs in instances of one kind. One that is stopped is given back: it draws nothing."""
    kind = kind_of(costs)
    return Stock(kind, gpus // kind.tp, 0, Watts(0.0))


def gpus_of(setup: Setup) -> int:
    """GPUs of the fleet that is the baseline: nobody may use more."""
    return sum(costs.profile.tp for costs in setup.costs)


def provisioned(terms: Terms, learn: Stream) -> Setup:
    """As many of the baseline's instances as the busiest minute of the learning half asks for."""
    count = _for_peak(terms, census(learn))
    return replace(terms.setup, costs=terms.setup.costs[:1] * count)


def resharded(terms: Terms, learn: Stream) -> Setup:
    """The baseline's GPUs, all on, in instances of the kind that needs the least watts for the peak."""
    gpus, tpot = gpus_of(terms.setup), terms.setup.objectives.tpot
    demand, rules, found = _peak(census(learn)), PlanRules(), [(float("inf"), terms.setup.costs)]
    for costs in terms.builds:
        kind, count = kind_of(costs), gpus // costs.profile.tp
        if count and enough(kind, demand, count, tpot, rules):
            share, top = replace(demand, rate=demand.rate / count), kind.model.clocks[-1]
            watts = settle(kind.model, share, top, kind.limits.chunk_budget).watts
            found.append((watts * count * kind.tp, (costs,) * count))
    return replace(terms.setup, costs=min(found, key=lambda one: one[0])[1])


def nine_pools(terms: Terms, learn: Stream) -> Setup:
    """Instances for each of the nine types, for the busiest minute of its own."""
    places = list[str]()
    for name, mine in _parts(learn, terms.setup.cuts, "nine").items():
        places += [name] * (_for_peak(terms, mine) if mine.count else 1)
    costs = terms.setup.costs[:1] * len(places)
    return replace(terms.setup, border="nine", costs=costs, places=tuple(places))


def _peak(brings: Census) -> Demand:
    """What the busiest minute brings, at the mean lengths."""
    return brings.demand(brings.peak)


def _for_peak(terms: Terms, brings: Census) -> int:
    kind, tpot = kind_of(terms.setup.costs[0]), terms.setup.objectives.tpot
    return fewest(kind, _peak(brings), tpot, PlanRules()) or len(terms.setup.costs)


def kind_of(costs: EngineCosts) -> Kind:
    """What the planner is told about an engine."""
    profile = costs.profile
    start = Seconds(profile.actuation.instance_start_s)
    watts = Watts(profile.power.p_start_w)
    return Kind(profile.name, costs.model, limits_of(profile), profile.tp, start, watts)


def _draws(seed: int) -> Rng:
    """Integers below n, the same for the same seed."""
    drawn = cycle(np.random.default_rng(seed).random(DRAWS).tolist())
    return lambda n: int(next(drawn) * n)


def _laws(name: str, setup: Setup) -> Laws:
    switch = Seconds(setup.costs[0].profile.actuation.clock_switch_s)
    if name == "throttllem":
        return Laws(
            AdmissionRules(prompt_window=EVERYTHING, edf=False), GovernorRules(switch=switch, floor=False)
        )
    if name in ("multi-pool", "scale-inst"):
        return Laws(AdmissionRules(), GovernorRules(static_clock=setup.costs[0].profile.clocks[-1]))
    return Laws(AdmissionRules(), GovernorRules(switch=switch), true_lengths=name == "oracle")


def _aims(name: str, terms: Terms) -> Objectives:
    aims = terms.setup.objectives
    if name == "throttllem":
        return Objectives((NO_OBJECTIVE,) * 3, aims.tpot, terms.e2e, None)
    if name == "joulegate-slowdown":
        return Objectives(aims.ttft, aims.tpot, aims.e2e, terms.max_slowdown)
    return aims


def best_static(cases: Sequence[Case], setup: Setup) -> float:
    """The clock with the least energy whose saving counts on the halves that are learned from."""
    clocks = setup.costs[0].profile.clocks

    def at(clock: float) -> Pooled:
        return Pooled(tuple(run_fixed(case.learn, setup, clock) for case in cases))

    baseline = at(clocks[-1])
    low, high = 0, len(clocks) - 1  # lowest clock that passes, by bisection: slower is never better served
    while low < high:
        middle = (low + high) // 2
        if why_not(at(clocks[middle]), baseline):
            low = middle + 1
        else:
            high = middle
    stride = max(1, (len(clocks) - high) // 8)
    tried = {i: joules_per_token(at(clocks[i])) for i in range(high, len(clocks), stride)}
    return float(clocks[min(tried, key=lambda i: tried[i])])
